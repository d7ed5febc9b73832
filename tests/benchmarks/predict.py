"""Benchmarks of batch inference, for docs/inference.md; every number is a ratio within one run, or memory.

python -m tests.benchmarks.predict loop --images 20000 [--workers 1] [--s3]
python -m tests.benchmarks.predict growth --images 1000 10000 --workers 1 2 4 [--nodes 3]
python -m tests.benchmarks.predict growth --images 100000 --workers 2 --plot docs/images/inference-memory.png
python -m tests.benchmarks.predict plain --images 5000
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.detect.images import ImageRef
from pipelines.detect.manifest import build_manifest
from pipelines.detect.predictor import Predictor
from pipelines.detect.prefetch import Block
from pipelines.predict.config import PredictConfig
from pipelines.predict.run import predict
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import ImageBatch, ImageSize
from sparse_detr.storage.location import locate
from tests.benchmarks.memory import Memory
from tests.benchmarks.pictures import make_images, make_model, scratch

BLOCK = 64
SIDE = 128


def configured(folder: Path, workers: int, output: str) -> PredictConfig:
    """The recipe `tiny` on pictures of 128 pixels."""
    return PredictConfig(
        model=str(folder / "model"),
        images=str(folder / "images"),
        output=str(folder / output),
        short_side=SIDE,
        max_side=SIDE,
        batch_size=8,
        workers=workers,
        images_per_block=BLOCK,
    )


def _loop(config: PredictConfig, part: int, ready: Any, go: Any, times: Any) -> None:
    """The bare loop of one process: its share of the images, the same predictor, nothing written."""
    torch.set_num_threads(1)
    predictor = Predictor(SparseDetr.from_pretrained(config.model), config, score_threshold=config.score_threshold)
    predictor.check()
    keys = build_manifest(config.images).table.column("key").to_pylist()[part :: config.workers]
    blocks = [
        Block(images=[ImageRef(index=i, key=key) for i, key in enumerate(keys[start : start + BLOCK])])
        for start in range(0, len(keys), BLOCK)
    ]
    ready.release()
    go.wait()
    started = time.perf_counter()
    done = sum(len(results) for results in predictor.detect_blocks(locate(config.images).child, blocks))
    times.put(done / (time.perf_counter() - started))


def bare_loop(config: PredictConfig) -> float:
    """Images a second of all processes together, without their start."""
    context = multiprocessing.get_context("spawn")
    ready, go, times = context.Semaphore(0), context.Event(), context.Queue()
    assert config.workers is not None
    processes = [context.Process(target=_loop, args=(config, part, ready, go, times)) for part in range(config.workers)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    go.set()
    speed = sum(times.get() for _ in processes)
    for process in processes:
        process.join()
    return float(speed)


@dataclass(frozen=True, slots=True)
class Measured:
    """The pipeline's pace."""

    steady: float
    """Images a second between the first block that is done and the last."""
    start: float
    """Seconds from the call to the first image."""
    whole: float
    """Images a second of the whole command."""


def pipeline(config: PredictConfig) -> Measured:
    """Run `predict`."""
    seen: list[tuple[float, int]] = []
    started = time.perf_counter()
    result = predict(config, on_progress=lambda done, _: seen.append((time.perf_counter() - started, done)))
    (t0, n0), (t1, n1) = seen[0], seen[-1]
    steady = (n1 - n0) / (t1 - t0)
    return Measured(steady, t0 - n0 / steady, result.images / result.seconds)


def loop(images: int, workers: int, store: bool) -> None:
    """Pipeline over bare loop, the one between two of the other."""
    with scratch() as folder, _stored(folder, images, workers, store) as config:
        before = bare_loop(config)
        found = pipeline(config)
        after = bare_loop(config)
        bare = (before + after) / 2
        print(f"pipeline over bare loop {found.steady / bare:.3f}, whole command over bare loop "
                  f"{found.whole / bare:.3f}, start {found.start:.1f} s; the bare loop's own two runs "
                  f"{after / before:.3f}", flush=True)  # fmt: skip


@contextmanager
def _stored(folder: Path, images: int, workers: int, store: bool) -> Iterator[PredictConfig]:
    """Images, model and output on the local disk, or all in an S3 server of this machine."""
    make_images(folder / "images", images)
    make_model(folder)
    config = configured(folder, workers, "out")
    if not store:
        yield config
        return
    from pipelines.services.s3_server import local_s3

    with local_s3(folder / "s3") as server:
        os.environ |= server.environment()
        server.create_bucket("bench")
        for name in ("images", "model"):
            locate(f"s3://bench/{name}").copy_tree_from(folder / name)
        yield replace(config, images="s3://bench/images", model="s3://bench/model", output="s3://bench/out")


def growth(counts: list[int], workers: list[int], nodes: int, plot: Path | None) -> None:
    """Images a second in the steady state against the first, and memory, over images and workers."""
    first = None
    print(f"| images | workers | images/s, times the first | peak MB: {' | '.join(Memory.NAMES)} |")
    for count in counts:
        with scratch() as folder:
            make_images(folder / "images", count)
            make_model(folder)
            for number in workers:
                with Memory() as memory, _nodes(nodes):
                    found = pipeline(configured(folder, number, f"out{number}"))
                first = first or found.steady
                peaks = " | ".join(f"{value:.0f}" for value in memory.peaks())
                print(f"| {count} | {number} | {found.steady / first:.2f} | {peaks} |", flush=True)
                if plot is not None:
                    _draw(memory, f"{count} images, {number} workers", plot)


@contextmanager
def _nodes(count: int) -> Iterator[None]:
    """So many raylets on this machine, of two logical CPUs each; 0 leaves it to `predict` to start its own Ray."""
    if not count:
        yield
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        cluster.shutdown()


def _draw(memory: Memory, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="seconds", ylabel="MB")
    seconds, *columns = zip(*memory.samples, strict=True)
    for name, values in zip(Memory.NAMES, columns, strict=True):
        if name != "all of Ray":
            axes.plot(seconds, values, label=name)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


class PlainDetector:
    """The pattern of Ray's own example of object detection: pixels come as rows, each passes the model alone."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self._model = SparseDetr.from_pretrained(model).eval()
        self._transform = EvalTransform(size=ImageSize(short_side=SIDE, max_side=SIDE))

    @torch.inference_mode()
    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Add boxes, scores and labels."""
        found = []
        for image in batch["image"]:
            pixels, _ = self._transform(image, np.zeros((0, 4)), np.zeros(0, np.int64))
            output = self._model(ImageBatch.from_list([pixels]))
            found += postprocess(output, [image.shape[:2]], limit=100)
        return batch | {
            "boxes": [each.boxes.numpy().ravel() for each in found],
            "scores": [each.scores.numpy() for each in found],
            "labels": [each.labels.numpy() for each in found],
        }


def plain_pattern(config: PredictConfig) -> float:
    """Images a second of read_images, map_batches and take_all, with a Ray that is up."""
    import ray

    started = time.perf_counter()
    found = ray.data.read_images(config.images, include_paths=True).map_batches(
        PlainDetector, fn_constructor_args=(config.model,), batch_size=BLOCK, num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(size=config.workers),
    )  # fmt: skip
    rows = found.take_all()
    return len(rows) / (time.perf_counter() - started)


def plain(images: int) -> None:
    """Our command against that pattern: the whole of both, and their memory."""
    from pipelines.cluster.session import ray_session

    with scratch() as folder:
        make_images(folder / "images", images)
        make_model(folder)
        speeds = []
        for name, run in (
            ("plain pattern", plain_pattern), ("sparse-detr predict", lambda config: pipeline(config).whole),
        ):  # fmt: skip
            with Memory() as memory, ray_session():
                speeds.append(run(configured(folder, 2, "out")))
            peaks = ", ".join(f"{kind} {peak:.0f}" for kind, peak in zip(Memory.NAMES, memory.peaks(), strict=True))
            print(f"{name}: {speeds[-1] / speeds[0]:.2f} times; peak MB: {peaks}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("loop")
    one.add_argument("--images", type=int, default=20_000)
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--s3", action="store_true")
    two = commands.add_parser("growth")
    two.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    two.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    two.add_argument("--nodes", type=int, default=0)
    two.add_argument("--plot", type=Path)
    three = commands.add_parser("plain")
    three.add_argument("--images", type=int, default=5000)
    given = parser.parse_args()
    if given.command == "loop":
        loop(given.images, given.workers, given.s3)
    elif given.command == "growth":
        growth(given.images, given.workers, given.nodes, given.plot)
    else:
        plain(given.images)


if __name__ == "__main__":
    main()
