"""The paper's claims on real images, small: BCCD at several keep ratios, without auxiliary losses, by objectness.

python -m tests.benchmarks.claims --bccd ../shared/data/bccd --backbone ../shared/data/backbones/resnet18_imagenet_stem_to_layer3.safetensors --results claims.jsonl

Every run is appended to the results, and one that is there is not done again: the same command goes on. One process and
one thread a run, so that the numbers depend on nothing but seed and settings.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.recipes.registry import get_recipe
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.validation import ValidationImages, validate
from sparse_detr.data.coco import read_coco, write_coco
from sparse_detr.data.voc import import_voc
from sparse_detr.storage.location import locate

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dense": {"model.keep_ratio": 1.0},
    "dense, no encoder auxiliary loss": {"model.keep_ratio": 1.0, "model.encoder_auxiliary_loss": False},
    "keep ratio 0.1": {"model.keep_ratio": 0.1},
    "keep ratio 0.3": {"model.keep_ratio": 0.3},
    "keep ratio 0.5": {"model.keep_ratio": 0.5},
    "0.3, no encoder auxiliary loss": {"model.keep_ratio": 0.3, "model.encoder_auxiliary_loss": False},
    "0.3, by objectness": {"model.keep_ratio": 0.3, "model.token_criterion": "objectness"},
}


def run_config(arguments: argparse.Namespace, folder: Path) -> RunConfig:
    """`bccd_r18` on half of its size, in one process."""
    for split in ("train", "test"):
        write_coco(folder / f"{split}.json", import_voc(Path(arguments.bccd), split)[0])
    images = str(Path(arguments.bccd) / "JPEGImages")
    changes = {
        "data.train_annotations": str(folder / "train.json"),
        "data.train_images": images,
        "data.val_annotations": str(folder / "test.json"),
        "data.val_images": images,
        "data.short_side": 96,
        "data.max_side": 128,
        "data.augment.short_sides": [80, 88, 96, 104, 112],
        "data.augment.max_side": 160,
        "data.augment.crop_resize": [96, 112, 128],
        "data.augment.crop_min": 64,
        "data.augment.crop_max": 96,
        "training.epochs": arguments.epochs,
        "training.evaluate_every": arguments.epochs,
        "training.workers": 1,
        "training.init_backbone": str(Path(arguments.backbone).absolute()),
    }
    return override(get_recipe("bccd_r18"), changes)


def measured(config: RunConfig) -> dict[str, float]:
    """COCO's numbers on the test split after the last epoch."""
    loop = build_loop(config)
    history = loop.run()
    images = ValidationImages(
        index=read_coco(config.data.val_annotations), root=locate(config.data.val_images), size=config.data.image_size
    )
    found = validate(loop.eval_model, images, torch.device("cpu"), Ranks())
    return {name: found[name] for name in ("ap", "ap50", "ap75")} | {
        "seconds": sum(epoch["train_seconds"] for epoch in history)
    }


def table(rows: list[dict[str, Any]]) -> None:
    """Mean and spread over the seeds of each variant."""
    print("| | seeds | AP | AP50 |\n|---|---|---|---|")
    for variant in VARIANTS:
        found = [row for row in rows if row["variant"] == variant]
        if not found:
            continue
        cells = []
        for name in ("ap", "ap50"):
            values = [row[name] for row in found]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {variant} | {len(found)} | {cells[0]} | {cells[1]} |")


def main() -> None:
    """Run what is not in the results yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.results.parent
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["variant"], row["seed"]) for row in rows}
    base = run_config(arguments, folder)
    for seed in range(arguments.seeds):
        for variant, changes in VARIANTS.items():
            if (variant, seed) in done:
                continue
            row = {"variant": variant, "seed": seed, **measured(override(base, {**changes, "training.seed": seed}))}
            rows.append(row)
            with arguments.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
