"""`sparse-detr explain`: draws the picture and shows the numbers."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from pipelines.cli.console import say, values_table
from pipelines.explain.config import ExplainConfig
from pipelines.explain.run import explain
from sparse_detr.storage.location import locate


def explain_command(config: ExplainConfig) -> int:
    """Explain, and show the numbers and where the picture is."""
    found = explain(config)
    facts: Mapping[str, object] = found.summary(config.threshold) | {"picture": locate(config.output).uri}
    Console().print(values_table("Explanation", facts))
    if found.report.missing is not None:
        say(found.report.missing)
    return 0
