"""What a model costs for one image: counted by the formula, and measured."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pipelines.console import values_table
from pipelines.recipes import RECIPES, get_recipe
from sparse_detr.benchmark.cost import ModelCost, model_cost
from sparse_detr.benchmark.latency import Latency, LatencyConfig, measure_latency
from sparse_detr.benchmark.work import Work
from sparse_detr.errors import CheckpointError, ConfigError
from sparse_detr.model.checkpoint import load_model
from sparse_detr.model.config import ModelConfig
from sparse_detr.model.sparse_detr import SparseDetr
from sparse_detr.records import ImageSize
from sparse_detr.storage import locate

_DEFAULT_SIZE = ImageSize(short_side=800, max_side=1333)


@dataclass(frozen=True, slots=True, kw_only=True)
class CostConfig(LatencyConfig):
    """For which image, and how to measure."""

    height: int | None = None
    """Pixels of the image after resizing; by default the short side that the recipe, or the model, is evaluated at."""
    width: int | None = None
    """Likewise; by default 4/3 of that short side, within the evaluation's longest side."""
    keep_ratio: float | None = None
    """Share of the tokens to update instead of the model's own; 1 is the dense encoder."""
    latency: bool = True
    """Also run the model and measure; otherwise count alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostReport:
    """What a model costs."""

    cost: ModelCost
    latency: Latency | None
    """None where only counted."""
    trained: bool
    """Whether it was measured with a trained model's weights; otherwise with random ones."""


def run_cost(source: str, config: CostConfig) -> CostReport:
    """Count, and measure unless told otherwise.

    Args:
        source: name of a recipe, or path or URI of a model folder.

    Raises:
        ConfigError: `source` is neither, or a field cannot work with the model.
        CheckpointError, StorageError: the folder does not hold a complete model, or cannot be reached.
    """
    model_config, size, model = _find(source)
    height = size.short_side if config.height is None else config.height
    width = min(size.short_side * 4 // 3, size.max_side) if config.width is None else config.width
    cost = model_cost(model_config, height, width, config.keep_ratio)
    latency = None
    if config.latency:
        runnable = SparseDetr(model_config) if model is None else model
        latency = measure_latency(runnable, height, width, config, config.keep_ratio)
    return CostReport(cost=cost, latency=latency, trained=model is not None)


def _find(source: str) -> tuple[ModelConfig, ImageSize, SparseDetr | None]:
    """Configuration and evaluation size, and the model itself where `source` is a folder."""
    if source in RECIPES:
        recipe = get_recipe(source)
        size = ImageSize(short_side=recipe.data.short_side, max_side=recipe.data.max_side)
        return recipe.model, size, None
    try:
        model = load_model(source)
    except CheckpointError as error:
        if "/" in source or locate(source).exists():
            raise
        raise ConfigError(_no_recipe(source)) from error
    return model.config, model.image_size or _DEFAULT_SIZE, model


def _no_recipe(name: str) -> str:
    try:
        get_recipe(name)
    except ConfigError as error:
        return f"{error} A model folder may stand in its place."
    raise AssertionError(f"{name} is a recipe")


def cost_verb(source: str, config: CostConfig) -> int:
    """Show what the model costs."""
    report = run_cost(source, config)
    console = Console()
    console.print(parts_table(source, report.cost))
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
