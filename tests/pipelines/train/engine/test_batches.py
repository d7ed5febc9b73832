from __future__ import annotations

import json
import socket
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.services.s3_server import LocalS3
from pipelines.train.engine.batches import load_data
from pipelines.train.preflight import check_data
from sparse_detr.errors import AnnotationError, ConfigError, StorageError
from sparse_detr.storage import access


def test_two_ranks_share_the_images_without_overlap(quick_run: RunConfig) -> None:
    config = override(quick_run, {"training.workers": 2})
    shares = [load_data(config, rank=rank, world_size=2) for rank in range(2)]
    trained = [[image for (batch,) in share.train for image in batch.image_ids] for share in shares]

    assert [len(ids) for ids in trained] == [12, 12]
    assert len({*trained[0], *trained[1]}) == 24
    assert [len(share.train) for share in shares] == [3, 3]
    assert all(len(batch.images) == config.training.images_per_micro_batch == 4 for (batch,) in shares[0].train)


def test_epochs_come_in_another_order_but_the_same_again(quick_run: RunConfig) -> None:
    data = load_data(quick_run)

    def order(epoch: int) -> list[int]:
        data.train.set_epoch(epoch)
        return [image for (batch,) in data.train for image in batch.image_ids]

    assert order(0) != order(1)
    assert order(0) == order(0)


def test_loader_processes_give_the_same_images(quick_run: RunConfig) -> None:
    config = override(quick_run, {"training.micro_batch": 4})
    here = list(load_data(config).train)
    there = list(load_data(override(config, {"data.loader_workers": 2})).train)

    assert [len(step) for step in here] == [2, 2, 2]
    for one, other in zip(chain(*here), chain(*there), strict=True):
        assert one.image_ids == other.image_ids
        assert torch.equal(one.images.pixels, other.images.pixels)


def test_the_limit_takes_the_first_images(quick_run: RunConfig) -> None:
    limited = load_data(override(quick_run, {"data.train_limit": 8}))

    first = sorted(image["id"] for image in json.loads(Path(quick_run.data.train_annotations).read_text())["images"])
    assert sorted(image for (batch,) in limited.train for image in batch.image_ids) == first[:8]


def test_what_is_not_set_is_named(quick_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_images: not set"):
        load_data(override(quick_run, {"data.val_images": ""}))


def test_classes_of_both_files_must_agree(quick_run: RunConfig, tmp_path: Path) -> None:
    data = json.loads(Path(quick_run.data.val_annotations).read_text())
    data["categories"][0]["name"] = "disc"
    (tmp_path / "val.json").write_text(json.dumps(data))

    with pytest.raises(AnnotationError, match=r"val\.json: classes .*disc.* are not those of"):
        check_data(override(quick_run, {"data.val_annotations": str(tmp_path / "val.json")}))


def test_a_batch_beyond_the_data_is_refused(quick_run: RunConfig) -> None:
    assert check_data(quick_run).classes.names == ("circle", "square", "star", "triangle")
    with pytest.raises(ConfigError, match=r"training\.global_batch: 32 is more than the 24 training images"):
        check_data(override(quick_run, {"training.global_batch": 32}))


def test_a_missing_image_is_named(quick_run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"\.jpg"):
        check_data(override(quick_run, {"data.train_images": str(tmp_path)}))


def with_bad_box(source: str, target: Path, image: int) -> dict[str, Any]:
    """The annotations with the first box of one image made flat; returns that annotation."""
    data = json.loads(Path(source).read_text())
    image_id = data["images"][image]["id"]
    bad: dict[str, Any] = next(row for row in data["annotations"] if row["image_id"] == image_id)
    bad["bbox"][2] = 0
    target.write_text(json.dumps(data))
    return bad


def test_boxes_that_are_left_out_are_listed(quick_run: RunConfig, tmp_path: Path) -> None:
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    first = with_bad_box(quick_run.data.train_annotations, train, image=20)
    second = with_bad_box(quick_run.data.val_annotations, val, image=0)
    config = override(quick_run, {"data.train_annotations": str(train), "data.val_annotations": str(val)})
    found = check_data(config)

    assert (found.train_images, found.val_images) == (24, 8)
    assert [line.split(": ")[0] for line in found.dropped] == [str(train), str(val)]
    assert f"annotation {first['id']}: box" in found.dropped[0]
    assert f"annotation {second['id']}: box" in found.dropped[1]
    assert all("no area" in line for line in found.dropped)
    # Its image is not among the first ones, so nothing of it is used, and nothing lost.
    limited = check_data(override(config, {"data.train_limit": 8}))
    assert (limited.train_images, limited.dropped) == (8, found.dropped[1:])
    assert check_data(quick_run).dropped == ()


INPUTS = {
    "data.train_annotations": "s3://tests/train.json",
    "data.train_images": "s3://tests/train",
    "data.val_annotations": "s3://tests/val.json",
    "data.val_images": "s3://tests/val",
}


@pytest.mark.timeout(30)
def test_wrong_credentials_are_said_at_once(quick_run: RunConfig, s3: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StorageError, match=r"refuses the credentials") as caught:
        check_data(override(quick_run, INPUTS))
    assert "not-the-secret" not in str(caught.value)


@pytest.mark.timeout(30)
def test_a_backbone_on_the_web_is_looked_for_first(quick_run: RunConfig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"https://127.0.0.1:{free.getsockname()[1]}/r50-01234567.pth"
    with pytest.raises(StorageError, match=f"{address}: cannot be fetched"):
        check_data(override(quick_run, {"training.init_backbone": address}))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("field", [*INPUTS, "training.init_backbone", "training.init_model"])
def test_a_silent_store_does_not_hang(quick_run: RunConfig, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    monkeypatch.setattr(access, "ACCESS_DEADLINE", 0.5)
    uri = "s3://bucket/here"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageError, match=f"{uri}: no answer"):
            check_data(override(quick_run, {field: uri}))
