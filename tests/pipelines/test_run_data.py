from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.config import RunConfig, override
from pipelines.run_data import check_data, load_data
from sparse_detr.errors import AnnotationError, ConfigError


def test_two_ranks_share_the_images_without_overlap(quick_run: RunConfig) -> None:
    config = override(quick_run, {"training.workers": 2})
    shares = [load_data(config, rank=rank, world_size=2) for rank in range(2)]
    trained = [[image for batch in share.train for image in batch.image_ids] for share in shares]
    held_out = [[image for batch in share.val for image in batch.image_ids] for share in shares]

    assert [len(ids) for ids in trained] == [12, 12]
    assert len({*trained[0], *trained[1]}) == 24
    assert sorted(held_out[0] + held_out[1]) == sorted(image["id"] for image in shares[0].ground_truth["images"])
    assert [len(share.train) for share in shares] == [3, 3]
    assert all(len(batch.images) == config.training.batch_per_worker == 4 for batch in shares[0].train)


def test_epochs_come_in_another_order_but_the_same_again(quick_run: RunConfig) -> None:
    data = load_data(quick_run)

    def order(epoch: int) -> list[int]:
        data.train.set_epoch(epoch)
        return [image for batch in data.train for image in batch.image_ids]

    assert order(0) != order(1)
    assert order(0) == order(0)


def test_loader_processes_give_the_same_images(quick_run: RunConfig) -> None:
    torch.manual_seed(0)
    here = [batch.image_ids for batch in load_data(quick_run).train]
    there = [batch.image_ids for batch in load_data(override(quick_run, {"data.loader_workers": 1})).train]

    assert here == there


def test_the_limit_takes_the_first_images(quick_run: RunConfig) -> None:
    limited = load_data(override(quick_run, {"data.train_limit": 8}))

    first = sorted(image["id"] for image in json.loads(Path(quick_run.data.train_annotations).read_text())["images"])
    assert sorted(image for batch in limited.train for image in batch.image_ids) == first[:8]


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
    assert check_data(quick_run).names == ("circle", "square", "star", "triangle")
    with pytest.raises(ConfigError, match=r"training\.global_batch: 32 is more than the 24 training images"):
        check_data(override(quick_run, {"training.global_batch": 32}))


def test_a_missing_image_is_named(quick_run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"\.jpg"):
        check_data(override(quick_run, {"data.train_images": str(tmp_path)}))
