"""Plan and resume of a large manifest, for docs/inference.md.

python -m tests.benchmarks.predict_manifest --rows 1000000
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from pathlib import Path

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.manifest import Manifest
from pipelines.detect.rows import results_table
from pipelines.predict.parts import Part, Stamp, part_name, write_part
from pipelines.predict.resume import Journal, done_parts, plan_tasks
from pipelines.predict.stored_manifest import write_manifest
from sparse_detr.storage.location import locate
from tests.benchmarks.pictures import scratch

BLOCK = 64


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    manifest(parser.parse_args().rows)
