"""`sparse-detr evaluate`: COCO's numbers, or the table over keep ratios."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, progress_bar, rows_table, say, values_table
from pipelines.cluster.ray_log import kept_aside
from pipelines.cluster.session import announced
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.keep_ratios import ratio_rows
from pipelines.evaluate.run import EvaluateResult, evaluate


def evaluate_command(config: EvaluateConfig) -> int:
    """Evaluate, and show COCO's twelve numbers and the AP of each class, or the table over several keep ratios."""
    with kept_aside(say), progress_bar("Evaluating") as move:
        result = evaluate(config, on_progress=move, connect=announced(say))
    console = Console()
    _show_one(console, result) if len(result.ratios) == 1 else _show_several(console, result)
    if result.dropped:
        lines = [str(box) for box in result.dropped]
        console.print(listing("Boxes left out", lines), markup=False, highlight=False)
    return 0


def _show_one(console: Console, result: EvaluateResult) -> None:
    (found,) = result.ratios
    console.print(values_table("COCO", found.metrics.summary()))
    console.print(values_table("AP of each class", dict(found.metrics.per_class)))
    if found.overlap:
        console.print(values_table("Attention on kept tokens", found.overlap))
    facts = {"detections": found.detections, "keep ratio": found.keep_ratio, "GFLOPs": found.gflops,
             "ms/image": found.milliseconds}  # fmt: skip
    console.print(values_table("Run", facts | _run(result)))


def _show_several(console: Console, result: EvaluateResult) -> None:
    console.print(rows_table("Keep ratios; ms of one image", ratio_rows(result.ratios)))
    console.print(values_table("Run", _run(result) | {"plot": result.plot}))


def _run(result: EvaluateResult) -> dict[str, object]:
    return {"images": result.images, "seconds": result.seconds, "images/s": result.images_per_second}
