"""`sparse-detr convert`: the tensors of each part as a table."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, rows_table, values_table
from pipelines.convert.config import ConvertConfig
from pipelines.convert.run import convert
from pipelines.recipes.override import field_values
from sparse_detr.config_dict import to_dict


def convert_command(config: ConvertConfig) -> int:
    """Convert, and show the configuration and what was mapped."""
    result = convert(config)
    console, report = Console(), result.report
    console.print(values_table("Configuration", field_values(to_dict(report.config))))
    columns = ("tensors", "aliases", "numbers")
    rows = [
        {"part": part} | {name: f"{getattr(count, name):,}" for name in columns} for part, count in result.parts.items()
    ]
    sums = {name: f"{sum(getattr(count, name) for count in result.parts.values()):,}" for name in columns}
    console.print(rows_table("Mapped", [*rows, {"part": "all"} | sums]))
    for title, lines in (
        ("Keys without weights, left out", report.ignored),
        ("Taken to be as usual, as the checkpoint does not say", report.assumed),
    ):
        if lines:
            console.print(listing(title, lines), markup=False, highlight=False)
    kind = "Our model folder" if result.direction == "to ours" else "A checkpoint for the authors' code"
    console.print(f"{kind}: {result.output}", markup=False, highlight=False, soft_wrap=True)
    return 0
