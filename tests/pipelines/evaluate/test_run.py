from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.run import evaluate
from pipelines.services.s3_server import LocalS3
from sparse_detr.cost.model import model_cost
from sparse_detr.data.coco import read_coco
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import AnnotationError, ConfigError, ImageError, OutputExistsError, StorageError
from sparse_detr.evaluation.coco_ap import coco_results, evaluate_coco
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.records import ImageBatch, ImageSize
from sparse_detr.storage.location import Location, locate
from sparse_detr.weights.model_folder import save_model


@pytest.fixture(scope="module")
def subset(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twelve images of COCO, crowd boxes among theirs, with all 80 categories: (annotations, images)."""
    folder = tmp_path_factory.mktemp("coco")
    source = shared / "data" / "coco_tiny"
    data = json.loads((source / "annotations" / "instances_val2017.json").read_text())
    crowd = {a["image_id"] for a in data["annotations"] if a["iscrowd"]}
    data["images"] = sorted(data["images"], key=lambda image: image["id"] not in crowd)[:12]
    ids = {image["id"] for image in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
    assert any(a["iscrowd"] for a in data["annotations"])
    (folder / "images").mkdir()
    for image in data["images"]:
        found = next(source.rglob(image["file_name"]))
        (folder / "images" / image["file_name"]).write_bytes(found.read_bytes())
    (folder / "annotations.json").write_text(json.dumps(data))
    return folder / "annotations.json", folder / "images"


@pytest.fixture(scope="module")
def coco_model(subset: tuple[Path, Path]) -> SparseDetr:
    """Untrained; the biases of its class heads differ, so that scores do not tie."""
    torch.manual_seed(0)
    config = ModelConfig(
        num_classes=80,
        backbone=BackboneConfig(name="resnet_tiny", norm="group_norm", frozen_stages=0),
        channels=64,
        heads=4,
        encoder_layers=1,
        decoder_layers=1,
        feedforward_channels=64,
        queries=50,
        keep_ratio=0.3,
    )
    model = SparseDetr(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.shape[0] == 80:
                parameter.normal_()
    model.classes = read_coco(str(subset[0])).classes
    return model.eval()


def _one_by_one(config: EvaluateConfig, model: SparseDetr, keep_ratio: float | None = None) -> list[dict[str, Any]]:
    """The same detections without any of the pipeline: each image alone."""
    transform = EvalTransform(size=ImageSize(short_side=config.short_side, max_side=config.max_side))
    index = read_coco(config.annotations)
    assert model.classes is not None
    results: list[dict[str, Any]] = []
    for image in index.images:
        pixels = decode_image((Path(config.images) / image.file_name).read_bytes(), name=image.file_name)
        tensor, _ = transform(pixels, np.zeros((0, 4)), np.zeros(0, np.int64))
        with torch.no_grad():
            output = model(ImageBatch.from_list([tensor]), keep_ratio)
        (found,) = postprocess(output, [(image.height, image.width)])
        results += coco_results(image.id, found, model.classes)
    return results


def _input_size(config: EvaluateConfig, height: int, width: int) -> tuple[int, int]:
    blank = np.zeros((height, width, 3), np.uint8)
    transform = EvalTransform(size=ImageSize(short_side=config.short_side, max_side=config.max_side))
    pixels, _ = transform(blank, np.zeros((0, 4)), np.zeros(0, np.int64))
    return pixels.shape[1], pixels.shape[2]


@pytest.fixture(scope="module")
def config(
    subset: tuple[Path, Path], coco_model: SparseDetr, tmp_path_factory: pytest.TempPathFactory
) -> EvaluateConfig:
    """Some of the model's own findings count as true boxes too, so that its numbers are not zero."""
    folder = tmp_path_factory.mktemp("model")
    save_model(str(folder / "model"), coco_model)
    annotations, images = subset
    config = EvaluateConfig(
        model=str(folder / "model"),
        images=str(images),
        annotations=str(annotations),
        short_side=128,
        max_side=200,
        workers=2,
        images_per_block=5,
    )
    data = json.loads(annotations.read_text())
    found = [r for r in _one_by_one(config, coco_model) if min(r["bbox"]) > 2 and r["score"] > 0.6][::7]
    assert len(found) > 10
    data["annotations"] += [
        {**r, "id": 10**9 + i, "iscrowd": 0, "area": r["bbox"][2] * r["bbox"][3]} for i, r in enumerate(found)
    ]
    (folder / "annotations.json").write_text(json.dumps(data))
    return replace(config, annotations=str(folder / "annotations.json"))


def test_numbers_equal_those_of_a_plain_loop_from_folder_and_store(
    config: EvaluateConfig, coco_model: SparseDetr, ray_cluster: object, s3: LocalS3, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    here = evaluate(
        replace(config, output=str(tmp_path / "here.json")), on_progress=lambda done, total: seen.append((done, total))
    )
    expected = _one_by_one(config, coco_model)
    metrics = evaluate_coco(read_coco(config.annotations).ground_truth(), expected)
    assert metrics.ap50 > 0.01
    assert here.metrics.summary() == pytest.approx(metrics.summary(), abs=1e-3)
    assert (here.images, here.detections, here.keep_ratio) == (12, len(expected), 0.3)
    assert seen[-1] == (12, 12)

    s3.create_bucket("evaluate")
    root = locate("s3://evaluate/coco")
    root.child("images").copy_tree_from(Path(config.images))
    root.child("annotations.json").write_bytes(Path(config.annotations).read_bytes())
    stored = replace(
        config,
        images=root.child("images").uri,
        annotations=root.child("annotations.json").uri,
        output="s3://evaluate/there.json",
    )
    there = evaluate(stored)
    assert there.metrics == here.metrics
    key = lambda entry: (entry["image_id"], -entry["score"], entry["category_id"], entry["bbox"])  # noqa: E731
    detections = [
        sorted(json.loads(locate(uri).read_bytes()), key=key)
        for uri in (str(tmp_path / "here.json"), "s3://evaluate/there.json")
    ]
    assert detections[0] == detections[1]


def test_several_keep_ratios_give_what_each_gives_alone_a_plot_and_a_table(
    config: EvaluateConfig, coco_model: SparseDetr, ray_cluster: object, tmp_path: Path
) -> None:
    output = tmp_path / "found.json"
    ratios = (0.9, 0.1, 1.0)
    result = evaluate(replace(config, keep_ratio=ratios, output=str(output), attention_overlap=True))
    assert (result.keep_ratio, result.images) == (0.9, 12)
    assert tuple(one.keep_ratio for one in result.ratios) == ratios
    truth = read_coco(config.annotations).ground_truth()
    for one in result.ratios:
        expected = _one_by_one(config, coco_model, one.keep_ratio)
        assert one.metrics.summary() == pytest.approx(evaluate_coco(truth, expected).summary(), abs=1e-3)
        stored = json.loads((tmp_path / f"found-{one.keep_ratio:g}.json").read_text())
        assert len(stored) == one.detections == len(expected)
        assert one.milliseconds > 0
    few, most, every = (result.ratios[place] for place in (1, 0, 2))
    sizes = [_input_size(config, image.height, image.width) for image in read_coco(config.annotations).images]
    for one in result.ratios:
        costs = [model_cost(coco_model.config, *size, one.keep_ratio).whole.total for size in sizes]
        assert one.gflops == pytest.approx(np.mean(costs) / 1e9)
    assert few.gflops < most.gflops
    assert set(few.overlap) == {"corr", "corr_0", "corr_1", "corr_2", "corr_3"}
    assert few.overlap["corr"] < most.overlap["corr"] <= 1.0
    assert every.overlap == {}  # dense: nothing is chosen
    assert result.plot == str(tmp_path / "found.png")
    with Image.open(result.plot) as plot:
        assert plot.format == "PNG"


def test_several_ratios_of_a_dense_model_are_refused_by_name(config: EvaluateConfig, tmp_path: Path) -> None:
    model = SparseDetr.from_pretrained(config.model)
    dense = SparseDetr(replace(model.config, keep_ratio=1.0)).eval()
    dense.classes = model.classes
    save_model(str(tmp_path / "dense"), dense)
    refused = replace(config, model=str(tmp_path / "dense"), keep_ratio=(0.1, 0.3, 1.0), plot=str(tmp_path / "p.png"))
    with pytest.raises(ConfigError, match=r"keep_ratio: 0\.1, but this model was built dense"):
        evaluate(refused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep_ratio": (0.1, 1.2)}, r"keep_ratio: 1\.2; give a number in \(0, 1\]"),
        ({"keep_ratio": (0.1, 0.1)}, "has a ratio twice"),
        ({"keep_ratio": (0.3, 0.1, 0.30000001)}, "has a ratio twice, in the six digits that name its file"),
        ({"keep_ratio": ()}, "keep_ratio: no number"),
        ({"keep_ratio": (0.1, 0.2), "plot": "plot.pdf"}, r"plot: plot\.pdf; .*\.png"),
        ({"plot": "plot.png"}, "with 0 keep ratios"),
    ],
)
def test_ratios_and_plots_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(model="m", images="i", annotations="a", **changes)


def _copy(config: EvaluateConfig, folder: Path) -> EvaluateConfig:
    for image in Path(config.images).iterdir():
        (folder / image.name).write_bytes(image.read_bytes())
    return replace(config, images=str(folder))


def test_missing_image_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    config = _copy(config, tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    first.unlink()
    with pytest.raises(AnnotationError, match=first.name):
        evaluate(config)


def test_broken_image_is_refused(config: EvaluateConfig, ray_cluster: object, tmp_path: Path) -> None:
    config = _copy(config, tmp_path)
    first = sorted(tmp_path.iterdir())[0]
    first.write_bytes(first.read_bytes()[:500])
    with pytest.raises(ImageError, match=first.name):
        evaluate(config)


def test_data_of_other_classes_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    data = json.loads(Path(config.annotations).read_text())
    data["categories"][0]["name"] = "unicorn"
    (tmp_path / "other.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="unicorn"):
        evaluate(replace(config, annotations=str(tmp_path / "other.json")))


def test_an_output_that_exists_is_refused_before_any_work(config: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("precious")
    broken = replace(config, model="/nowhere", annotations="/nowhere")  # neither is looked at
    with pytest.raises(OutputExistsError, match=r"results\.json exists; .*overwrite"):
        evaluate(replace(broken, output=str(tmp_path / "results.json")))
    with pytest.raises(OutputExistsError, match="is a folder"):
        evaluate(replace(broken, output=str(tmp_path), existing="overwrite"))
    (tmp_path / "found-0.3.json").write_text("precious")
    (tmp_path / "plot.png").write_text("precious")
    several = replace(broken, keep_ratio=(0.1, 0.3))
    with pytest.raises(OutputExistsError, match=r"output: .*found-0\.3\.json exists"):
        evaluate(replace(several, output=str(tmp_path / "found.json")))
    with pytest.raises(OutputExistsError, match=r"plot: .*plot\.png exists"):
        evaluate(replace(several, plot=str(tmp_path / "plot.png")))
    for name in ("found-0.3.json", "plot.png"):
        (tmp_path / name).unlink()
    assert (tmp_path / "results.json").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_an_output_that_is_an_input_or_another_output_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    annotations, plot = tmp_path / "ann.json", tmp_path / "found-0.3.png"
    annotations.write_text("precious")
    config = replace(config, annotations=str(annotations), model=str(tmp_path / "model"), existing="overwrite")
    with pytest.raises(OutputExistsError, match=r"^annotations: .*ann\.json is what output would replace"):
        evaluate(replace(config, output=str(annotations)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"^model: .*model holds .*config\.json, which output would replace"):
        evaluate(replace(config, output=str(tmp_path / "model" / "config.json")))
    twice = replace(config, output=str(tmp_path / "found.png"), plot=str(plot), keep_ratio=(0.3, 0.5))
    with pytest.raises(OutputExistsError, match=r"^output at keep_ratio 0\.3: .*found-0\.3\.png is what plot would"):
        evaluate(twice)


def test_data_without_images_is_refused_before_any_work(config: EvaluateConfig, tmp_path: Path) -> None:
    data = json.loads(Path(config.annotations).read_text())
    (tmp_path / "none.json").write_text(json.dumps(data | {"images": [], "annotations": []}))
    with pytest.raises(ConfigError, match=r"annotations: .*none\.json has no images"):
        evaluate(replace(config, annotations=str(tmp_path / "none.json"), model="/nowhere"))


def test_an_output_is_overwritten_when_told_and_dropped_boxes_are_listed(
    config: EvaluateConfig, ray_cluster: object, tmp_path: Path
) -> None:
    data = json.loads(Path(config.annotations).read_text())
    data["annotations"][3]["bbox"][2:] = [0, 5]
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    (tmp_path / "results.json").write_text("of yesterday")
    result = evaluate(
        replace(
            config,
            annotations=str(tmp_path / "annotations.json"),
            output=str(tmp_path / "results.json"),
            existing="overwrite",
        )
    )
    assert len(json.loads((tmp_path / "results.json").read_text())) == result.detections
    assert [box.annotation_id for box in result.dropped] == [data["annotations"][3]["id"]]


@pytest.mark.parametrize("field", ["annotations", "images", "output"])
def test_wrong_credentials_are_an_error_and_no_hang(
    config: EvaluateConfig, store: Location, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        evaluate(replace(config, **{field: store.child("x.json").uri}))
    assert time.monotonic() - started < 15
    assert "not-the-secret" not in str(caught.value)
