"""`sparse-detr cost`: operations by part, and latency, as tables."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipelines.cli.console import values_table
from pipelines.cost.config import CostConfig
from pipelines.cost.run import run_cost
from sparse_detr.cost.latency import Latency
from sparse_detr.cost.model import ModelCost
from sparse_detr.cost.work import Work


def cost_command(config: CostConfig) -> int:
    """Show what the model costs."""
    report = run_cost(config)
    console = Console()
    console.print(parts_table(config.recipe, report.cost))
    if report.latency is not None:
        console.print(latency_table(report.latency, report.trained))
    return 0


def parts_table(name: str, cost: ModelCost) -> Table:
    """Operations, their shares, and parameters of every part; it fits 80 columns."""
    whole = cost.whole
    power = 9 if whole.total >= 10**9 else 6
    kept = "all" if cost.kept == cost.tokens else f"{cost.kept} of"
    title = f"{name} on {cost.height}x{cost.width}, {kept} {cost.tokens} tokens updated: 10^{power} operations"
    caption = "products: multiply-adds of convolutions and matrices; the rest as in docs/cost.md"
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("part", style="bold", no_wrap=True)
    for column in ("products", "sampling", "norms", "all", "share", "parameters"):
        table.add_column(column, justify="right", no_wrap=True)
    for part, work in cost.parts.items():
        table.add_row(part, *_cells(work, whole, 10**power))
    table.add_section()
    table.add_row("whole model", *_cells(whole, whole, 10**power))
    return table


def _cells(work: Work, whole: Work, unit: int) -> list[str]:
    numbers = [f"{number / unit:.2f}" for number in (work.products, work.sampling, work.norms, work.total)]
    return [*numbers, f"{work.total / whole.total:.1%}", f"{work.parameters:,}"]


def latency_table(latency: Latency, trained: bool) -> Table:
    """The measured time, and all that it depends on."""
    return values_table(
        "Measured",
        {
            "median": f"{latency.median:.1f} ms ({latency.fastest:.1f} to {latency.slowest:.1f}, {latency.runs} runs)",
            "images": latency.batch,
            "weights": "trained" if trained else "random",
            "machine": latency.machine,
            "precision": latency.precision,
            "software": f"torch {latency.torch}, deformable attention by the {latency.kernel} kernel",
        },
    )
