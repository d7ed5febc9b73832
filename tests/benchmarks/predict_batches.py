"""Batches of images of many shapes: exact shapes together, as `predict` does it, against padded buckets.

python -m tests.benchmarks.predict_batches --images 512 --short-side 128
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.detect.config import PredictorConfig
from pipelines.detect.images import ImageRef, ImageResult, ReadyImage
from pipelines.detect.predictor import Predictor
from pipelines.detect.prefetch import Block
from sparse_detr.detector import SparseDetr
from sparse_detr.storage.location import locate
from tests.benchmarks.pictures import make_coco_like_images, make_images, make_model, scratch

BLOCK = 64


@dataclass
class Passed:
    """What went through the model."""

    images: int = 0
    batches: int = 0
    pixels: int = 0
    """Padding included."""
    real: int = 0
    """Pixels without it."""


class Counting(Predictor):
    """Counts batches and padding, and notes the time in the model."""

    def run(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """As ever."""
        height = max(image.pixels.shape[1] for image in images)
        width = max(image.pixels.shape[2] for image in images)
        self.passed.images += len(images)
        self.passed.batches += 1
        self.passed.pixels += len(images) * height * width
        self.passed.real += sum(image.pixels[0].numel() for image in images)
        return super().run(images)

    def reset(self) -> None:
        """Count from nothing."""
        self.passed = Passed()


def exact(predictor: Counting, blocks: list[list[ReadyImage]]) -> list[ImageResult]:
    """Exact shapes together: the product's own way, with images that are loaded already."""
    found = []
    for block in blocks:
        refs = [ImageRef(index=image.index, key=image.key) for image in block]
        ready = {image.index: [image] for image in block}
        found += next(predictor.detect_blocks(locate, [Block(images=refs, ready=ready)]))
    return found


def buckets(predictor: Counting, blocks: list[list[ReadyImage]]) -> list[ImageResult]:
    """Neighbours in width over height share a batch, padded to its largest image."""
    found = []
    for block in blocks:
        block = sorted(block, key=lambda image: image.pixels.shape[2] / image.pixels.shape[1])
        for start in range(0, len(block), predictor.batch_size):
            found += predictor.run(block[start : start + predictor.batch_size])
    return sorted(found, key=lambda result: result.index)


def compare(images: int, short_side: int, batch_size: int, recipe: str) -> None:
    """Print both ways on images of one shape, and of hundreds."""
    torch.set_num_threads(1)
    print("| images | way | images a batch | full | padding | images/s, times exact shapes | scores differ by up to |")
    for name, make in (("one shape", make_images), ("COCO's shapes", make_coco_like_images)):
        with scratch() as folder:
            make(folder / "images", images)
            config = PredictorConfig(short_side=short_side, max_side=short_side * 5 // 3, batch_size=batch_size)
            predictor = Counting(SparseDetr.from_pretrained(make_model(folder, recipe)), config)
            blocks = _load(predictor, folder / "images")
            predictor.reset()
            exact(predictor, blocks[:1])  # warms up
            _report(name, predictor, blocks)


def _report(name: str, predictor: Counting, blocks: list[list[ReadyImage]]) -> None:
    shapes = len({tuple(image.pixels.shape) for block in blocks for image in block})
    times: dict[str, list[float]] = {"exact shapes": [], "padded buckets": []}
    ways: dict[str, Callable[[Counting, list[list[ReadyImage]]], list[ImageResult]]] = {
        "exact shapes": exact, "padded buckets": buckets,
    }  # fmt: skip
    found: dict[str, list[ImageResult]] = {}
    passed: dict[str, Passed] = {}
    for _ in range(3):
        for way, run in ways.items():
            predictor.reset()
            started = time.perf_counter()
            found[way] = run(predictor, blocks)
            times[way].append(time.perf_counter() - started)
            passed[way] = predictor.passed
    for way in ways:
        count = passed[way]
        mean = count.images / count.batches
        print(f"| {name} ({shapes}) | {way} | {mean:.2f} | {mean / predictor.batch_size:.0%} | "
              f"{1 - count.real / count.pixels:.1%} | {min(times['exact shapes']) / min(times[way]):.2f} | "
              f"{_difference(found['exact shapes'], found[way]):.1e} |", flush=True)  # fmt: skip


def _difference(one: list[ImageResult], other: list[ImageResult]) -> float:
    """Of the scores, best first, of all images."""
    return max(
        float((a.detections.scores - b.detections.scores).abs().max())
        for a, b in zip(one, other, strict=True)
        if a.detections is not None and b.detections is not None
    )


def _load(predictor: Predictor, folder: Path) -> list[list[ReadyImage]]:
    loaded: list[ReadyImage] = []
    for index, path in enumerate(sorted(folder.iterdir())):
        ready = predictor._loader.prepare(ImageRef(index=index, key=path.name), path.read_bytes())
        assert isinstance(ready, list)
        loaded += ready
    return [loaded[start : start + BLOCK] for start in range(0, len(loaded), BLOCK)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--short-side", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--recipe", default="tiny")
    given = parser.parse_args()
    compare(given.images, given.short_side, given.batch_size, given.recipe)
