"""The demo: servers, data, training, sweep, inference, inspection, report."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from pipelines.cli.console import values_table
from pipelines.cluster.ray_log import native_errors_to
from pipelines.cluster.session import ray_session
from pipelines.demo import stages
from pipelines.demo.config import DemoConfig
from pipelines.demo.folder import claim_prefix, claimed_folder
from pipelines.demo.report import duration
from pipelines.demo.results import Chapters, Place, SweepChapter
from pipelines.demo.steps import Steps
from pipelines.recipes.config import RunConfig
from pipelines.services.s3_server import local_s3
from pipelines.tracking.tracker import Tracker
from pipelines.train.run import TrainResult
from sparse_detr.environment import environment
from sparse_detr.errors import ConfigError
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate

_LOCAL_BUCKET = "sparse-detr"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """Content of `summary.json`, and the report's place."""

    report: Path
    summary: Mapping[str, object]


RunSweep = Callable[[DemoConfig, RunConfig, TrainResult, Tracker, Steps], SweepChapter]
"""The demo's sweep: from the training run and its result. `tune` is above this package, and hands it over."""


def run_demo(config: DemoConfig, console: Console, run_sweep: RunSweep) -> DemoResult:
    """Run the main job from scratch to detections; everything that it started has ended when it returns or raises.

    Raises:
        OutputExistsError: the output folder, or the prefix in the user's store, holds something that is no demo's.
        ConfigError: RAY_ADDRESS names a cluster, and no store is given that its machines can reach.
        SparseDetrError: any other user error.
        KeyboardInterrupt: Ctrl-C.
    """
    started = time.monotonic()
    require_reachable_store(config)
    with ExitStack() as stack:
        stack.enter_context(_one_interrupt(console))
        folder = stack.enter_context(claimed_folder(config.output))
        stack.enter_context(native_errors_to(folder / "ray.log"))
        steps = stack.enter_context(Steps(console, stages.STEPS))
        with steps.step("Store, Ray, MLflow") as bar:
            store = _open_store(config, folder, stack)
            session = stack.enter_context(ray_session())
            place = Place(folder=folder, store=store, tracking_uri=tracking_uri(config, folder))
            tracker = stack.enter_context(stages.tracked(config, place))
            bar.note = f"{store.uri}, {session.cpus:g} logical CPUs, {session.gpus:g} GPUs"
        data = stages.make_data(config, place, steps)
        run = stages.training_run(config, place, data)
        trained = stages.run_training(run, tracker, steps)
        swept = run_sweep(config, run, trained, tracker, steps)
        found = stages.run_inference(config, place, data, trained, tracker, steps)
        evaluated, examples = stages.inspect_model(config, place, run, trained, tracker, steps)
        chapters = Chapters(
            data=data, run=run, trained=trained, swept=swept, found=found, evaluated=evaluated, examples=examples
        )
        stages.write_results(place, config, chapters, tracker, steps)
        total = time.monotonic() - started
        summary = stages.write_report_and_summary(place, config, chapters, tracker, steps.done, total)
    _say_goodbye(console, folder / "report.html", summary)
    return DemoResult(report=folder / "report.html", summary=summary)


def require_reachable_store(config: DemoConfig) -> None:
    """Refuse to join a cluster with a store on this machine's loopback, which its other machines cannot reach."""
    address = os.environ.get("RAY_ADDRESS")
    if address and config.store is None:
        raise ConfigError(
            f"RAY_ADDRESS: {address}, but store is not set, and the demo's own S3 server listens on this machine's "
            "loopback alone; give --store s3://bucket/prefix, or unset RAY_ADDRESS for a local Ray"
        )


def tracking_uri(config: DemoConfig, folder: Path) -> str:
    """Tracking URI of the demo: the config's store, the environment's, or one in the demo's folder."""
    return config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"


@contextmanager
def _one_interrupt(console: Console) -> Iterator[None]:
    """The first Ctrl-C unwinds; more of them must not keep servers from being stopped."""
    stopping = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopped; servers and workers have ended.")
        raise
    finally:
        signal.signal(signal.SIGINT, previous)


def _open_store(config: DemoConfig, folder: Path, stack: ExitStack) -> Location:
    if config.store is not None:
        store = locate(config.store)
        check_access(store, writable=True)
        claim_prefix(store)
        return store
    s3 = stack.enter_context(local_s3(folder / "store"))
    stack.enter_context(environment(s3.environment()))
    s3.create_bucket(_LOCAL_BUCKET)
    return locate(f"s3://{_LOCAL_BUCKET}/demo")


def _say_goodbye(console: Console, report: Path, summary: Mapping[str, object]) -> None:
    seconds = summary["seconds"]
    assert isinstance(seconds, dict)
    shown = {
        "report": report,
        "validation AP": summary["ap"],
        "validation AP50": summary["ap50"],
        "time": duration(seconds["total"]),
    }
    console.print(values_table("Done", shown))
