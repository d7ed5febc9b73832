"""Benchmarks of batch inference, for docs/inference.md; every number is a ratio within one run, or memory.

python tests/benchmarks/predict.py loop --images 20000
python tests/benchmarks/predict.py manifest --rows 1000000
python tests/benchmarks/predict.py growth --images 1000 10000 --workers 1 2
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.detect.images import ImageFailure, ImageRef, ImageResult
from pipelines.detect.manifest import Manifest, build_manifest
from pipelines.detect.predictor import Predictor
from pipelines.detect.prefetch import Block
from pipelines.detect.rows import results_table
from pipelines.predict.config import PredictConfig
from pipelines.predict.parts import Part, Stamp, part_name, write_part
from pipelines.predict.resume import Journal, done_parts, plan_tasks
from pipelines.predict.run import predict
from pipelines.predict.stored_manifest import write_manifest
from pipelines.recipes.registry import get_recipe
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import locate
from sparse_detr.weights.model_folder import save_model

BLOCK = 64


def make_images(folder: Path, count: int) -> None:
    """Pictures of smooth noise, 128 x 128, 4 kB each; 200 different ones."""
    folder.mkdir(parents=True)
    originals = []
    for seed in range(200):
        coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = folder / f"{seed:06d}.jpg"
        Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC).save(path, quality=85)
        originals.append(path.read_bytes())
    for number in range(200, count):
        (folder / f"{number:06d}.jpg").write_bytes(originals[number % 200])


def configured(folder: Path, workers: int, output: str) -> PredictConfig:
    """The recipe `tiny` on pictures of 128 pixels."""
    return PredictConfig(
        model=str(folder / "model"),
        images=str(folder / "images"),
        output=str(folder / output),
        short_side=128,
        max_side=128,
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


def pipeline(config: PredictConfig) -> tuple[float, float, float]:
    """Images a second in the steady state, seconds to the first image, images a second of the whole command."""
    seen: list[tuple[float, int]] = []
    started = time.perf_counter()
    result = predict(config, on_progress=lambda done, _: seen.append((time.perf_counter() - started, done)))
    (t0, n0), (t1, n1) = seen[0], seen[-1]
    steady = (n1 - n0) / (t1 - t0)
    return steady, t0 - n0 / steady, result.images / result.seconds


def loop(images: int, repeats: int) -> None:
    """Pipeline over bare loop."""
    with scratch() as folder:
        prepare(folder, images)
        for repeat in range(repeats):
            config = configured(folder, 2, f"out{repeat}")
            bare = bare_loop(config)
            steady, start, whole = pipeline(config)
            bare = (bare + bare_loop(config)) / 2
            print(f"pipeline over bare loop {steady / bare:.3f}, whole command over bare loop {whole / bare:.3f}, "
                  f"start over the time of 1000 images {start * bare / 1000:.2f} ({start:.1f} s)")  # fmt: skip


def growth(counts: list[int], workers: list[int]) -> None:
    """Images a second in the steady state against the first, and memory, over images and workers."""
    first = None
    print("| images | workers | images/s, times the first | peak MB: driver | workers, sum | all of Ray, sum |")
    for count in counts:
        with scratch() as folder:
            prepare(folder, count)
            for number in workers:
                with Memory() as memory:
                    steady, _, _ = pipeline(configured(folder, number, f"out{number}"))
                first = first or steady
                peaks = " | ".join(f"{value:.0f}" for value in memory.peaks())
                print(f"| {count} | {number} | {steady / first:.2f} | {peaks} |", flush=True)


def manifest(rows: int) -> None:
    """A large manifest: planned, and resumed at 50% and 99.9%, with and without the journal."""
    with scratch() as folder:
        started = time.perf_counter()
        keys = [f"2026/camera-{i % 97:02d}/image-{i:09d}.jpg" for i in range(rows)]
        table = Manifest.of("s3://bucket/images", keys, sizes=[100_000] * rows, etags=['"' + "0" * 32 + '"'] * rows)
        del keys
        identity = write_manifest(locate(folder), table)
        del table
        tasks = plan_tasks([], rows, BLOCK)
        report("planned", started, f"{len(tasks)} tasks")
        stamp = Stamp(fingerprint="f" * 16, manifest=identity)
        for share in (0.5, 0.999):
            for journalled in (True, False):
                fill(folder, int(rows * share) // BLOCK, stamp, journalled)
                started = time.perf_counter()
                parts = done_parts(locate(folder), stamp)
                tasks = plan_tasks(parts, rows, BLOCK)
                how = "with its journal" if journalled else "without journal"
                report(f"resumed at {share:.1%} {how}", started, f"{len(parts)} parts, {len(tasks)} tasks")
                shutil.rmtree(folder / "_parts", ignore_errors=True)


def fill(folder: Path, count: int, stamp: Stamp, journalled: bool) -> None:
    """So many parts, all of the same content."""
    gone = ImageFailure(stage="fetch", type="StorageError", message="gone")
    results = [ImageResult(index=i, key=f"image-{i:09d}.jpg", failure=gone) for i in range(BLOCK)]
    rows = results_table(results, [None] * BLOCK, root="s3://b/i", classes=None, fingerprint=stamp.fingerprint)
    part = write_part(locate(folder), 0, rows, stamp)
    data = (folder / "detections" / part.name).read_bytes()
    journal = Journal(locate(folder), stamp)
    for number in range(count):
        first = number * BLOCK
        path = folder / "detections" / part_name(first, first + BLOCK - 1)
        if not path.exists():
            path.write_bytes(data)
        if journalled:
            journal.add(Part(first=first, last=first + BLOCK - 1, size=len(data), sha256=part.sha256,
                             detections=0, errors=BLOCK))  # fmt: skip
    journal.flush()


def report(what: str, started: float, found: str) -> None:
    """A line with seconds and the peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what}: {time.perf_counter() - started:.1f} s, {found}, peak of the driver {peak:.0f} MB", flush=True)


def prepare(folder: Path, images: int) -> None:
    """Images and an untrained model."""
    make_images(folder / "images", images)
    torch.manual_seed(0)
    save_model(folder / "model", SparseDetr(get_recipe("tiny").model))


def scratch() -> Any:
    """A folder that is deleted."""
    return _Scratch()


class _Scratch(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    def __enter__(self) -> Path:  # type: ignore[override]
        return Path(super().__enter__())


class Memory:
    """Samples the memory of this process and its children each second (unique set, so that nothing counts twice)."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.samples: list[tuple[float, float, float]] = []

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def peaks(self) -> Iterator[float]:
        """Largest values, MB: driver, workers, all of Ray."""
        return (max(values) for values in zip(*self.samples, strict=True))

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            found = {pid: own_memory(pid) for pid in descendants(os.getpid())}
            workers = sum(used for pid, used in found.items() if "MapWorker" in command_line(pid))
            self.samples.append((own_memory(os.getpid()), workers, sum(found.values())))


def own_memory(pid: int) -> float:
    """Memory that a process shares with no other, MB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1024


def command_line(pid: int) -> str:
    """Words of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def descendants(root: int) -> list[int]:
    """Processes that a process started, and those that they did."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, pending = [], [root]
    while pending:
        above = pending.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        pending += below
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    one = commands.add_parser("loop")
    one.add_argument("--images", type=int, default=20_000)
    one.add_argument("--repeats", type=int, default=1)
    two = commands.add_parser("manifest")
    two.add_argument("--rows", type=int, default=1_000_000)
    three = commands.add_parser("growth")
    three.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    three.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    if arguments.command == "loop":
        loop(arguments.images, arguments.repeats)
    elif arguments.command == "manifest":
        manifest(arguments.rows)
    else:
        growth(arguments.images, arguments.workers)


if __name__ == "__main__":
    main()
