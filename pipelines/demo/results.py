"""Results of the demo's chapters, as the report and as `summary.json`."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.cluster.session import available_cpus
from pipelines.demo.collection import IMAGE_SIZE, DemoData
from pipelines.demo.config import DemoConfig
from pipelines.demo.report import Example, Link, Report, Step, Throughput, Trial, duration
from pipelines.evaluate.run import EvaluateResult
from pipelines.predict.result import PredictResult
from pipelines.recipes.config import RunConfig
from pipelines.train.run import TrainResult
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.location import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Folder, store and tracking of the demo."""

    folder: Path
    store: Location
    tracking_uri: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepChapter:
    """Sweep of the demo, as it is shown; the demo does not run it itself."""

    best: Mapping[str, object]
    """The best trial: id, params, ap, ap50."""
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapters:
    """Results of the steps."""

    data: DemoData
    run: RunConfig
    """The training run."""
    trained: TrainResult
    swept: SweepChapter
    found: PredictResult
    evaluated: EvaluateResult
    """At several keep ratios."""
    examples: tuple[Example, ...]


def make_summary(place: Place, chapters: Chapters, steps: tuple[Step, ...], total: float) -> dict[str, object]:
    """The numbers of the run, for machines; URIs without credentials."""
    best, found = chapters.trained.best, chapters.found
    return {
        "seconds": {step.name: round(step.seconds, 2) for step in steps} | {"total": round(total, 2)},
        "ap": best["ap"],
        "ap50": best["ap50"],
        "training": {
            "epochs": len(chapters.trained.history),
            "images_per_second": chapters.trained.images_per_second,
        },
        "inference": {
            "images": found.images,
            "errors": found.errors,
            "detections": found.detections,
            "images_per_second": found.images_per_second,
        },
        "ratios": [
            {
                "keep_ratio": one.keep_ratio,
                "ap": one.metrics.ap,
                "ap50": one.metrics.ap50,
                "gflops": one.gflops,
                "milliseconds": one.milliseconds,
            }
            for one in chapters.evaluated.ratios
        ],
        "best_trial": chapters.swept.best,
        "uris": {
            "store": place.store.uri,
            "model": chapters.trained.checkpoint,
            "detections": found.output,
            "tracking": without_secrets(place.tracking_uri),
            "report": str(place.folder / "report.html"),
            "local_model": str(place.folder / "model"),
            "local_detections": str(place.folder / "detections"),
        },
    }


def make_report(config: DemoConfig, place: Place, chapters: Chapters, steps: tuple[Step, ...], total: float) -> Report:
    """The report's content."""
    best, found, trained = chapters.trained.best, chapters.found, chapters.trained
    return Report(
        title="Sparse DETR, from scratch to detections",
        subtitle=(
            f"{config.images:,} training and {config.validation:,} validation pictures of {IMAGE_SIZE} x {IMAGE_SIZE}; "
            f"{available_cpus()} CPUs, Python {platform.python_version()}; {time.strftime('%d %B %Y, %H:%M')}"
        ),
        headline={
            "AP on validation images": f"{best['ap']:.3f}",
            "AP50 on validation images": f"{best['ap50']:.3f}",
            "from scratch to this report": duration(total).replace(" ", "\N{NO-BREAK SPACE}"),
            "images a second in training": f"{trained.images_per_second:.0f}",
            "images in the collection": f"{found.images:,}",
            "of them broken, each with an error row": f"{found.errors:,}",
        },
        steps=steps,
        history=tuple(trained.history),
        keep_ratio=chapters.run.model.keep_ratio,
        ratios=chapters.evaluated.ratios,
        trials=chapters.swept.trials,
        examples=chapters.examples,
        throughput=_throughput(chapters),
        broken=found.error_rows,
        places=_places(place, chapters),
        commands=_commands(place),
    )


def _throughput(chapters: Chapters) -> tuple[Throughput, ...]:
    run, trained, found = chapters.run, chapters.trained, chapters.found
    epochs = trained.history
    seconds = sum(row.get("train_seconds", 0.0) for row in epochs)
    ratio = min(chapters.evaluated.ratios, key=lambda one: abs(one.keep_ratio - run.model.keep_ratio))
    return (
        Throughput(
            what="Training",
            note=f"{run.training.workers} workers, {len(epochs)} epochs; evaluation left out",
            images=round(seconds * trained.images_per_second),
            seconds=seconds,
            images_per_second=trained.images_per_second,
        ),
        Throughput(
            what="Inference over the collection",
            note="from the store into Parquet; start of the workers included",
            images=found.images,
            seconds=found.seconds,
            images_per_second=found.images_per_second,
        ),
        Throughput(
            what="The model alone",
            note=f"forward of one worker, keep ratio {ratio.keep_ratio}",
            images=chapters.evaluated.images,
            seconds=chapters.evaluated.images * ratio.milliseconds / 1000,
            images_per_second=1000 / ratio.milliseconds,
        ),
    )


def _places(place: Place, chapters: Chapters) -> tuple[Link, ...]:
    rows = {
        "This folder": str(place.folder),
        "Model, here": str(place.folder / "model"),
        "Detections (Parquet), here": str(place.folder / "detections"),
        "Numbers of this run": str(place.folder / "summary.json"),
        "Model, in the store": chapters.trained.checkpoint,
        "Detections, in the store": chapters.found.output,
        "Image collection, in the store": chapters.data.collection,
        "MLflow": without_secrets(place.tracking_uri),
    }
    return tuple(Link(what=what, uri=uri) for what, uri in rows.items())


def _commands(place: Place) -> dict[str, str]:
    model = f"--model {place.folder / 'model'} --short-side {IMAGE_SIZE} --max-side {IMAGE_SIZE}"
    return {
        "Look at the runs": f"mlflow ui --backend-store-uri {without_secrets(place.tracking_uri)}",
        "Detect in other images": f"sparse-detr predict {model} --images FOLDER --output runs/mine",
        "Train on other data": "sparse-detr train --help",
        "See what is installed": "sparse-detr doctor",
    }
