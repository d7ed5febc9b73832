"""Chapters of the demo, one function each: they call the commands and keep what the report needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.demo.collection import DemoData, upload
from pipelines.demo.config import DemoConfig
from pipelines.demo.examples import examples
from pipelines.demo.report import Example, Step, write_report
from pipelines.demo.results import Chapters, Place, make_report, make_summary
from pipelines.demo.steps import Bar, Steps
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.run import EvaluateResult, evaluate
from pipelines.predict.config import PredictConfig
from pipelines.predict.result import PredictResult
from pipelines.predict.run import predict
from pipelines.recipes.config import RunConfig
from pipelines.recipes.registry import get_recipe
from pipelines.tracking.tracker import Tracker
from pipelines.tracking.training_run import closing, open_run
from pipelines.train.engine.progress import StepProgress
from pipelines.train.run import TrainResult, train
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import locate
from sparse_detr.visualize import panel

EXPERIMENT = "sparse-detr-demo"
EXAMPLES = 4
STEPS = 7


@contextmanager
def tracked(config: DemoConfig, place: Place) -> Iterator[Tracker]:
    """The demo's own MLflow run, under which all others nest; closed with how the demo ended."""
    with closing(open_run(place.tracking_uri, EXPERIMENT, "demo", tags={"command": "demo"})) as tracker:
        tracker.params(asdict(config))
        yield tracker


def make_data(config: DemoConfig, place: Place, steps: Steps) -> DemoData:
    """Generate and upload."""
    with steps.step("Data set") as bar:
        data = upload(place.store, config, bar.move)
        bar.note = f"{config.images:,} + {config.validation:,} images, {config.collection:,} to search, " + (
            f"{len(data.broken)} broken on purpose"
        )
    return data


def training_run(config: DemoConfig, place: Place, data: DemoData) -> RunConfig:
    """The recipe `tiny` on the demo's data."""
    recipe = get_recipe("tiny")
    return replace(
        recipe,
        name="training",
        data=replace(
            recipe.data,
            train_annotations=data.train_annotations,
            train_images=data.train_images,
            val_annotations=data.val_annotations,
            val_images=data.val_images,
        ),
        training=replace(
            recipe.training,
            epochs=config.epochs or recipe.training.epochs,
            evaluate_every=1,
            workers=config.workers,
            seed=config.seed,
        ),
        output=place.store.child("training").uri,
        tracking_uri=place.tracking_uri,
        experiment=EXPERIMENT,
    )


def run_training(run: RunConfig, tracker: Tracker, steps: Steps) -> TrainResult:
    """Ray Train."""
    with steps.step("Training") as bar:
        result = train(run, on_progress=_shown_on(bar), parent_run_id=tracker.run_id)
        best = result.best
        bar.note = f"AP {best['ap']:.3f}, AP50 {best['ap50']:.3f}, {result.images_per_second:.0f} images/s"
    return result


def inference_config(config: DemoConfig, place: Place, data: DemoData, trained: TrainResult) -> PredictConfig:
    """Detection at the model's own image size. Broken images never stop it: in a small collection they are many."""
    return PredictConfig(
        model=trained.checkpoint,
        images=data.collection,
        output=place.store.child("detections").uri,
        batch_size=16,
        workers=config.workers,
        existing="overwrite",
        error_budget="100%",
    )


def run_inference(
    config: DemoConfig, place: Place, data: DemoData, trained: TrainResult, tracker: Tracker, steps: Steps
) -> PredictResult:
    """Ray Data: the collection in the store, into Parquet in the store."""
    settings = inference_config(config, place, data, trained)
    with steps.step("Inference") as bar, closing(tracker.child("inference")) as child:
        child.params(asdict(settings))
        result = predict(settings, on_progress=bar.move)
        counts = ("images", "detections", "errors", "seconds", "images_per_second")
        child.metrics({name: float(getattr(result, name)) for name in counts}, 0)
        child.text("\n".join(f"{row.uri}: {row.stage}: {row.message}" for row in result.error_rows), "errors.txt")
        bar.note = f"{result.images:,} images, {result.detections:,} detections, {result.errors:,} error rows"
    return result


def inspect_model(
    config: DemoConfig, place: Place, run: RunConfig, trained: TrainResult, tracker: Tracker, steps: Steps
) -> tuple[EvaluateResult, tuple[Example, ...]]:
    """Precision at several keep ratios without training again, and pictures of what the model sees."""
    with steps.step("Keep ratios, pictures") as bar:
        data = run.data
        found = evaluate(evaluate_config(config, place, run, trained), on_progress=bar.move)
        model = SparseDetr.from_pretrained(trained.checkpoint)
        pictures = tuple(examples(model, data.val_annotations, data.val_images, EXAMPLES))
        for one in found.ratios:
            # Percent as the step: MLflow draws curves over whole steps alone.
            row = {"ap": one.metrics.ap, "ap50": one.metrics.ap50, "milliseconds": one.milliseconds}
            tracker.metrics({f"ratio/{name}": value for name, value in row.items()}, round(100 * one.keep_ratio))
        bar.note = ", ".join(f"{one.keep_ratio:g}: AP {one.metrics.ap:.3f}" for one in found.ratios)
    return found, pictures


def evaluate_config(config: DemoConfig, place: Place, run: RunConfig, trained: TrainResult) -> EvaluateConfig:
    """Evaluation of the trained model on the validation images, at the configured keep ratios and its own."""
    ratios = tuple(sorted({*config.ratios, run.model.keep_ratio}))
    return EvaluateConfig(
        model=trained.checkpoint,
        images=run.data.val_images,
        annotations=run.data.val_annotations,
        keep_ratio=ratios,
        plot=str(place.folder / "keep_ratios.png") if len(ratios) > 1 else None,
        batch_size=16,
        workers=config.workers,
        existing="overwrite",
    )


def write_results(place: Place, config: DemoConfig, chapters: Chapters, tracker: Tracker, steps: Steps) -> None:
    """Copies of model and detections out of the store, pictures, and the run's numbers in MLflow."""
    with steps.step("Results") as bar:
        locate(chapters.trained.checkpoint).download_to(place.folder / "model")
        locate(chapters.found.output).download_to(place.folder / "detections")
        pictures = write_pictures(place.folder / "pictures", chapters.examples)
        best = chapters.trained.best
        tracker.metrics({"ap": best["ap"], "ap50": best["ap50"], "errors": float(chapters.found.errors)}, 0)
        tracker.artifact(pictures, "pictures")
        tracker.model(chapters.trained.checkpoint)
        bar.note = f"{place.folder / 'report.html'}"


def write_pictures(folder: Path, examples: tuple[Example, ...]) -> Path:
    """Each example as one PNG, and all of them together as `demo.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for example in examples:
        titles = [title for title, _ in example.pictures]
        row = panel([pixels for _, pixels in example.pictures], titles, height=300)
        Image.fromarray(row).save(folder / f"{Path(example.caption).stem}.png")
        rows.append(row)
    if rows:
        Image.fromarray(np.concatenate(rows)).save(folder / "demo.png")
    return folder


def write_report_and_summary(
    place: Place, config: DemoConfig, chapters: Chapters, tracker: Tracker, steps: tuple[Step, ...], total: float
) -> dict[str, object]:
    """`report.html` and `summary.json`, here and in MLflow; returns the summary.

    The summary comes last and whole: where there is one, the demo went to its end.
    """
    report, summary = place.folder / "report.html", place.folder / "summary.json"
    values = make_summary(place, chapters, steps, total)
    write_report(report, make_report(config, place, chapters, steps, total))
    tracker.artifact(report)
    locate(summary).write_bytes(json.dumps(values, indent=2).encode() + b"\n")
    tracker.artifact(summary)
    return values


def _shown_on(bar: Bar) -> Callable[[StepProgress], None]:
    """Steps as the bar, loss and last AP beside it."""
    precision = ""

    def show(progress: StepProgress) -> None:
        nonlocal precision
        if "ap" in progress.metrics:
            precision = f", AP {progress.metrics['ap']:.3f}"
        loss = f"loss {progress.metrics['loss']:.2f}" if "loss" in progress.metrics else ""
        note = f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}, {loss}{precision}"
        bar.move(progress.step, progress.steps, note)

    return show
