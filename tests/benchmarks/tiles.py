"""Tiles against the whole image, for docs/inference.md: what the whole image misses, tiles find.

python tests/benchmarks/tiles.py                                    trains first, some minutes on 2 cores
python tests/benchmarks/tiles.py --model runs/tiles/training/model

A picture of 6000 x 4000 pixels with 300 small objects and 8 large ones is detected as a whole and in tiles. It stays in
the output folder with its annotations (COCO), so that `sparse-detr predict` can do the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from large_picture import LargePicture, annotations, draw_large_picture
from PIL import Image, ImageDraw
from tally import Found, average_precision, tally

from pipelines.detect.config import PredictorConfig
from pipelines.detect.images import ImageResult, ReadyImage
from pipelines.detect.predictor import Predictor
from pipelines.detect.tiles import TileGrid
from pipelines.recipes.registry import get_recipe
from pipelines.train.run import train
from sparse_detr.data.coco_index import write_coco
from sparse_detr.data.shapes import ShapesConfig, write_shapes
from sparse_detr.detector import SparseDetr
from sparse_detr.records import Detections
from sparse_detr.storage.location import locate
from sparse_detr.visualize import panel
from sparse_detr.visualize.style import class_colour

HEIGHT, WIDTH = 4000, 6000
SMALL, LARGE = (150.0, 200.0), (700.0, 1500.0)
"""Sides of objects, pixels: the small ones fit into the overlap of two tiles, the large ones into none."""
TRAINING = ShapesConfig(min_objects=3, max_objects=15, min_side=0.1, max_side=0.4)
"""As a tile shows the picture: more objects than the demo's pictures have, and smaller ones."""
THRESHOLD = 0.3
CROP = 1600
"""Side of the part of a picture that is drawn, pixels."""


def trained(folder: Path, epochs: int) -> str:
    """The model folder of the demo's recipe, trained on shapes that are many and small."""
    uris = write_shapes(locate(folder / "shapes"), TRAINING, {"train": 2000, "val": 300})
    recipe = get_recipe("tiny")
    config = replace(
        recipe,
        data=replace(
            recipe.data,
            train_annotations=uris["train"].annotations,
            train_images=uris["train"].images,
            val_annotations=uris["val"].annotations,
            val_images=uris["val"].images,
        ),
        training=replace(recipe.training, epochs=epochs, evaluate_every=epochs, explain_images=0),
        output=str(folder / "training"),
        tracking_uri="none",
    )
    result = train(config)
    print(f"trained: {epochs} epochs, AP50 {result.best['ap50']:.3f}, {result.seconds:.0f} s")
    return result.checkpoint


class Recording(Predictor):
    """Keeps what every view of an image gave, as it was before the views are merged."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[Detections] = []

    def run(self, images: Sequence[ReadyImage]) -> list[ImageResult]:
        """As the predictor's own."""
        results = super().run(images)
        self.seen += [result.detections for result in results if result.detections is not None]
        return results


def on_borders(picture: LargePicture, grid: TileGrid) -> Bool[np.ndarray, " N"]:
    """Objects that an inner border of a tile crosses."""
    tiles = list(grid.cut((HEIGHT, WIDTH)))
    crossed = np.zeros(len(picture.boxes), bool)
    for axis in (0, 1):
        for line in {tile[axis] for tile in tiles} | {tile[axis] + tile[axis + 2] for tile in tiles}:
            crossed |= (picture.boxes[:, axis] < line) & (line < picture.boxes[:, axis + 2])
    return crossed


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one way to look at the pictures found, one entry a picture."""

    merged: list[Found] = field(default_factory=list)
    unmerged: list[Found] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def of(cls, predictor: Recording, files: Sequence[Path]) -> Look:
        """Detect in the pictures; the least processor time of three counts."""
        look, seconds = cls(), 0.0
        for file in files:
            times = []
            for _ in range(3):
                predictor.seen.clear()
                started = time.process_time()
                (result,) = predictor([file])
                times.append(time.process_time() - started)
            look.merged.append(Found.of(result.detections, predictor.seen))
            look.unmerged.append(Found.of(None, predictor.seen))
            seconds += min(times)
        return replace(look, seconds=seconds)


HEADER = """| | boxes | recall: small | small, on a border | large | precision | AP50 \
| again by the same view | by another view | parts | another class | time |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


def row(name: str, found: Sequence[Found], pictures: Sequence[LargePicture], grid: TileGrid, times: str) -> str:
    """A line of the table."""
    tallies = [tally(one, picture) for one, picture in zip(found, pictures, strict=True)]
    met = np.concatenate([one.met for one in tallies])
    crossed = np.concatenate([on_borders(picture, grid) for picture in pictures])
    large = np.concatenate([picture.large for picture in pictures])
    boxes = sum(len(one.views) for one in found)
    ap50 = np.mean([average_precision(one, picture) for one, picture in zip(found, pictures, strict=True)])
    groups = (~large & ~crossed, ~large & crossed, large)
    cells = [name, f"{boxes}", *(f"{met[group].mean():.3f} of {group.sum()}" for group in groups)]
    cells += [f"{met.sum() / max(1, boxes):.3f}", f"{ap50:.3f}"]
    cells += [str(sum(getattr(one, kind) for one in tallies)) for kind in ("again", "twice", "parts", "confused")]
    return f"| {' | '.join([*cells, times])} |"


def side_by_side(
    picture: LargePicture, views: dict[str, Detections], grid: TileGrid, corner: Sequence[int]
) -> Image.Image:
    """A square part of the picture with the boxes of each view, each class in its colour; in the last, the tiles."""
    x, y = corner
    panels = []
    for name, found in views.items():
        part = Image.fromarray(picture.pixels[y : y + CROP, x : x + CROP])
        draw = ImageDraw.Draw(part)
        for left, top, width, height in grid.cut((HEIGHT, WIDTH)) if name == list(views)[-1] else ():
            draw.rectangle([left - x, top - y, left + width - x, top + height - y], outline="white", width=4)
        for box, label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True):
            draw.rectangle([box[0] - x, box[1] - y, box[2] - x, box[3] - y], outline=class_colour(label), width=10)
        panels.append(np.asarray(part))
    return Image.fromarray(panel(panels, list(views), height=400, gap=8))


def drawn(folder: Path, seed: int) -> LargePicture:
    """Make a picture of 8 large objects and 300 small ones, and write it with its annotations."""
    rng = np.random.default_rng(seed)
    sides = [np.exp(rng.uniform(*np.log(span), size)) for span, size in ((LARGE, 8), (SMALL, 300))]
    picture = draw_large_picture(HEIGHT, WIDTH, np.concatenate(sides), seed)
    Image.fromarray(picture.pixels).save(folder / "pictures" / f"{seed}.jpg", quality=95)
    write_coco(locate(folder / f"{seed}.json"), annotations(picture, f"{seed}.jpg"))
    return picture


def compare(model: SparseDetr, grid: TileGrid, folder: Path, count: int, corner: Sequence[int]) -> None:
    """Print the table, and draw a part of the first picture."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = [drawn(folder, seed) for seed in range(count)]
    files = [folder / "pictures" / f"{seed}.jpg" for seed in range(count)]
    most = {"max_detections": 1000}
    ways: dict[str, tuple[PredictorConfig, TileGrid | None]] = {
        "whole image": (PredictorConfig(**most), None),
        "whole image at 1024 x 683": (PredictorConfig(short_side=683, max_side=1024, **most), None),
        "tiles": (PredictorConfig(**most), grid),
    }
    looks = {
        name: Look.of(Recording(model, config, score_threshold=THRESHOLD, tiles=tiles), files)
        for name, (config, tiles) in ways.items()
    }
    print(HEADER)
    for name, look in looks.items():
        times = f"{look.seconds / looks['whole image'].seconds:.1f}"
        print(row(name, look.merged, pictures, grid, times))
    print(row("tiles, not merged", looks["tiles"].unmerged, pictures, grid, ""))
    shown = {name: looks[name].merged[0].detections for name in ("whole image", "tiles")}
    shown = {"objects": pictures[0].truth(), **shown}
    part = side_by_side(pictures[0], shown, grid, corner)
    part.quantize(128).save(folder / "tiles.png", optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/tiles"))
    parser.add_argument("--model", help="model folder; without it one is trained")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=float, default=0.2)
    parser.add_argument("--crop", type=int, nargs=2, default=(2200, 2400), help="corner of the part that is drawn")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # others would spin, and their time would count
    model = SparseDetr.from_pretrained(arguments.model or trained(arguments.output, arguments.epochs))
    grid = TileGrid(side=arguments.tile, overlap=arguments.overlap)
    compare(model, grid, arguments.output, arguments.pictures, arguments.crop)


if __name__ == "__main__":
    main()
