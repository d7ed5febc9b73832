"""Collections of pictures and an untrained model, for benchmarks of batch inference."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipelines.recipes.registry import get_recipe
from sparse_detr.detector import SparseDetr
from sparse_detr.weights.model_folder import save_model

COCO_SHAPES = ((640, 480), (640, 427), (480, 640), (427, 640), (640, 426), (500, 375))
"""(width, height) of COCO's most frequent shapes, about six images in ten; the others are in hundreds of shapes."""


def make_images(folder: Path, count: int) -> None:
    """Pictures of smooth noise, 128 x 128, 4 kB each; 200 different ones."""
    folder.mkdir(parents=True)
    for seed in range(min(count, 200)):
        _draw(folder / f"{seed:06d}.jpg", (128, 128), seed)
    originals = [path.read_bytes() for path in sorted(folder.iterdir())]
    for number in range(200, count):
        (folder / f"{number:06d}.jpg").write_bytes(originals[number % 200])


def make_coco_like_images(folder: Path, count: int) -> None:
    """Pictures of smooth noise in the shapes of COCO: six in ten of a frequent one, the others of any."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for seed in range(count):
        size = COCO_SHAPES[rng.integers(len(COCO_SHAPES))] if rng.random() < 0.6 else (640, int(rng.integers(300, 640)))
        _draw(folder / f"{seed:06d}.jpg", size if rng.random() < 0.8 else size[::-1], seed)


def make_model(folder: Path, recipe: str = "tiny") -> str:
    """A model of a recipe, untrained."""
    torch.manual_seed(0)
    save_model(folder / "model", SparseDetr(get_recipe(recipe).model))
    return str(folder / "model")


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is deleted."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _draw(path: Path, size: tuple[int, int], seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
