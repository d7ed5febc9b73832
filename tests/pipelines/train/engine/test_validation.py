"""Validation during a training: every image once, without padding, and the numbers of `sparse-detr evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cluster.session import RaySession
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.build import build_loop
from pipelines.train.engine.loop import TrainLoop
from pipelines.train.engine.ranks import Ranks
from pipelines.train.engine.validation import ValidationImages, coco_metrics, detect, flat_metrics, validate
from sparse_detr.data.coco import read_coco
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.decoder_attention import decoder_attention_map
from sparse_detr.errors import ImageError
from sparse_detr.evaluation.attention_overlap import OverlapMean
from sparse_detr.evaluation.coco_ap import coco_results, evaluate_coco
from sparse_detr.evaluation.mode import evaluating
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import ImageBatch, Output
from sparse_detr.storage.location import locate
from sparse_detr.weights.model_folder import save_model
from tests.pipelines.conftest import encode, picture
from tests.pipelines.train.engine.forked import run_ranks

CPU = torch.device("cpu")


def perfect_results(ground_truth: Mapping[str, Any]) -> list[dict[str, object]]:
    keys = ("image_id", "category_id", "bbox")
    return [{key: a[key] for key in keys} | {"score": 0.9} for a in ground_truth["annotations"]]


def test_perfect_results_have_an_ap_of_one(quick_run: RunConfig) -> None:
    ground_truth = read_coco(quick_run.data.val_annotations).ground_truth()
    metrics = coco_metrics(perfect_results(ground_truth), ground_truth, Ranks())

    flat = flat_metrics(metrics)
    assert flat["ap"] == 1.0
    assert flat["ap50"] == 1.0
    # The pictures have 64 pixels: no object is large, so COCO has no number for it.
    assert metrics.ap_large == -1
    assert "ap_large" not in flat
    present = {a["category_id"] for a in ground_truth["annotations"]}
    names = {c["name"] for c in ground_truth["categories"] if c["id"] in present}
    assert {name: value for name, value in flat.items() if name.startswith("ap/")} == {f"ap/{n}": 1.0 for n in names}


def test_every_validation_image_gets_detections(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    loop.model.train()
    results = detect(loop.model, loop.data.val, CPU, Ranks())

    assert {entry["image_id"] for entry in results} == {image.id for image in loop.data.val.index.images}
    assert {entry["category_id"] for entry in results} <= set(loop.data.classes.category_ids)
    assert loop.model.training


def one_by_one(loop: TrainLoop) -> list[tuple[int, Output, tuple[int, int]]]:
    """Id, output and size of each validation image, alone and without the pipeline."""
    transform, found = EvalTransform(size=loop.data.val.size), []
    with evaluating(loop.model):
        for image in loop.data.val.index.images:
            file = loop.data.val.root.child(image.file_name)
            pixels, _ = transform(decode_image(file.read_bytes(), name=file.uri), image.boxes, image.labels)
            output = loop.model(ImageBatch.from_list([pixels]), with_auxiliary=True)
            found.append((image.id, output, (image.height, image.width)))
    return found


def test_corr_of_sparse_models_is_measured_beside_the_same_detections(quick_run: RunConfig) -> None:
    loop = build_loop(quick_run)
    overlap = OverlapMean()
    assert detect(loop.model, loop.data.val, CPU, Ranks(), overlap) == detect(loop.model, loop.data.val, CPU, Ranks())

    shares = []
    for _, output, _ in one_by_one(loop):
        assert output.decoder_attention is not None
        assert output.selection is not None
        dam = decoder_attention_map(output.decoder_attention, output.shapes)[0]
        shares.append(float(dam[output.selection.kept[0]].sum() / dam.sum()))
    assert len(shares) == 8
    assert overlap.summary()["corr"] == pytest.approx(sum(shares) / 8, abs=1e-5)
    metrics = validate(loop.model, loop.data.val, CPU, Ranks())
    assert {name for name in metrics if name.startswith("corr")} == {"corr", "corr_0", "corr_1", "corr_2"}
    assert metrics["corr"] == overlap.summary()["corr"]


def test_dense_models_have_no_corr(quick_run: RunConfig) -> None:
    metrics = build_loop(override(quick_run, {"model.keep_ratio": 1.0})).evaluate()
    assert not any(name.startswith("corr") for name in metrics)


SIZES = [(96, 128), (128, 96), (64, 64), (100, 150), (90, 128), (300, 100)]


@pytest.fixture
def many_sizes(quick_run: RunConfig, tmp_path: Path) -> RunConfig:
    """Validation images of six sizes, more than a block of them."""
    categories = json.loads(Path(quick_run.data.val_annotations).read_text())["categories"]
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(70):
        height, width = SIZES[number % len(SIZES)]
        name = f"{(3 * number) % 70:02d}.jpg"
        (folder / name).write_bytes(encode(picture(number, height, width)))
        data["images"].append({"id": number + 1, "file_name": name, "height": height, "width": width})
        box = {"bbox": [20, 20, 40, 40], "area": 1600, "iscrowd": 0}
        data["annotations"].append({"id": number + 1, "image_id": number + 1, "category_id": 1 + number % 4} | box)
    (tmp_path / "val.json").write_text(json.dumps(data))
    changes = {"data.val_annotations": str(tmp_path / "val.json"), "data.val_images": str(folder)}
    return override(quick_run, changes | {"data.max_side": 100, "training.ema_decay": 0.0})


def with_objects_that_it_finds(loop: TrainLoop) -> str:
    """Give the images objects beside what the model detects, some better than others; the new annotations."""
    path = loop.data.val.index.source.replace("val.json", "found.json")
    data = loop.data.val.index.ground_truth() | {"annotations": []}
    found: dict[int, int] = {}
    for entry in detect(loop.model, loop.data.val, CPU, Ranks()):
        rank = found[entry["image_id"]] = found.get(entry["image_id"], -1) + 1
        if rank % 5 == 0:
            x, y, w, h = entry["bbox"]
            box = {"bbox": [x + 0.02 * rank % 7 * w, y, w, h], "area": w * h, "iscrowd": 0}
            ids = {name: entry[name] for name in ("image_id", "category_id")}
            data["annotations"].append({"id": len(data["annotations"]) + 1} | ids | box)
    Path(path).write_text(json.dumps(data))
    loop.data = replace(loop.data, val=replace(loop.data.val, index=read_coco(path)))
    return path


def test_images_of_other_sizes_change_nothing(many_sizes: RunConfig) -> None:
    """Against each image alone: AP to the last digit, though sums over a batch may round otherwise."""
    loop = build_loop(many_sizes)
    loop.run()
    with_objects_that_it_finds(loop)
    alone: list[dict[str, Any]] = []
    for image_id, output, size in one_by_one(loop):
        alone += coco_results(image_id, postprocess(output, [size])[0], loop.data.classes)
    metrics = loop.evaluate()
    assert 0.05 < metrics["ap"] < 0.95
    expected = flat_metrics(evaluate_coco(loop.data.val.index.ground_truth(), alone))
    assert {name: metrics[name] for name in expected} == expected


def test_ranks_share_the_blocks_and_agree(many_sizes: RunConfig, tmp_path: Path) -> None:
    def work(rank: int, world_size: int) -> dict[str, float]:
        loop = build_loop(many_sizes)
        return validate(loop.model, loop.data.val, CPU, Ranks(rank, world_size))

    one, first, second = (
        {name: value for name, value in found.items() if name != "evaluation_seconds"}
        for world_size in (1, 2)
        for found in run_ranks(world_size, tmp_path / str(world_size), work)
    )
    assert first == second
    assert first == pytest.approx(one, rel=1e-12)
    assert {name: one[name] for name in one if not name.startswith("corr")}.items() <= first.items()


def test_a_broken_image_is_named(many_sizes: RunConfig) -> None:
    loop = build_loop(many_sizes)
    (Path(many_sizes.data.val_images) / "33.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"data\.val_images: 33\.jpg cannot be used: .*not an image"):
        loop.evaluate()


@pytest.mark.slow
def test_evaluate_gives_the_same_numbers_to_the_last_digit(
    many_sizes: RunConfig, tmp_path: Path, ray_cluster: RaySession
) -> None:
    from pipelines.evaluate.config import EvaluateConfig
    from pipelines.evaluate.run import evaluate

    torch.set_num_threads(1)  # as a worker of `evaluate` does
    loop = build_loop(override(many_sizes, {"training.precision": "bfloat16"}))
    loop.run()
    save_model(tmp_path / "model", loop.eval_model)
    config = EvaluateConfig(
        model=str(tmp_path / "model"),
        images=many_sizes.data.val_images,
        annotations=with_objects_that_it_finds(loop),
        attention_overlap=True,
    )
    found = evaluate(config)
    expected, metrics = flat_metrics(found.metrics), loop.evaluate()
    assert 0.05 < expected["ap"] < 0.95
    assert {name: metrics[name] for name in expected} == expected
    assert {name: metrics[name] for name in found.ratios[0].overlap} == pytest.approx(found.ratios[0].overlap)


def test_a_training_goes_on_after_its_validation(quick_run: RunConfig) -> None:
    """What the model keeps from a pass in inference mode may not reach a later backward pass."""
    loop = build_loop(override(quick_run, {"training.ema_decay": 0.0, "training.epochs": 1}))
    loop.evaluate()
    loop.run()
    assert loop.step == 3


def test_evaluating_restores_the_mode_also_after_an_exception() -> None:
    model = torch.nn.Dropout()
    try:
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError
    except RuntimeError:
        pass
    assert model.training
    assert torch.is_grad_enabled()


def test_blocks_are_dealt_out_whole(many_sizes: RunConfig) -> None:
    data = many_sizes.data
    index = read_coco(data.val_annotations)
    index = replace(index, images=index.images * 3)
    images = ValidationImages(index=index, root=locate(data.val_images), size=data.image_size)
    shares = [list(images.blocks(rank, 2)) for rank in range(2)]
    assert [[len(block.images) for block in share] for share in shares] == [[64, 64], [64, 18]]
    assert sorted(ref.index for share in shares for block in share for ref in block.images) == list(range(210))
