"""Images and boxes of the same object, caches that change nothing, broken files that are named."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from sparse_detr.data.coco import index_coco, read_coco
from sparse_detr.data.coco_index import CocoIndex
from sparse_detr.data.dataset import DetectionDataset, collate
from sparse_detr.data.sampler import Draw, MicroBatchSampler
from sparse_detr.data.shapes import ShapesConfig, write_shapes
from sparse_detr.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from sparse_detr.errors import AnnotationError, ImageError, StorageError
from sparse_detr.records import Example, ImageSize
from sparse_detr.storage.location import Location, locate

STILL = EvalTransform(size=ImageSize(short_side=32, max_side=64))


def index_of(*sizes: tuple[int, int]) -> CocoIndex:
    """One object and one crowd in every image."""
    images = [{"id": 10 + i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
    annotations = [
        {"id": 2 * i + crowd, "image_id": 10 + i, "category_id": 5 - crowd, "bbox": [4, 8, 16, 8], "iscrowd": crowd}
        for i in range(len(sizes))
        for crowd in (0, 1)
    ]
    categories = [{"id": 4, "name": "a"}, {"id": 5, "name": "b"}]
    return index_coco({"images": images, "annotations": annotations, "categories": categories}, source="x.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, (height, width) in enumerate([(32, 32), (32, 48), (64, 32)]):
        Image.new("RGB", (width, height), (10 * i, 100, 200)).save(tmp_path / f"{i}.png")
    return tmp_path


SIZES = ((32, 32), (32, 48), (64, 32))


def test_an_example_has_its_objects_and_no_crowd(folder: Path) -> None:
    example = DetectionDataset(index_of(*SIZES), folder, STILL)[1]
    assert (example.image_id, example.original_size) == (11, (32, 48))
    assert example.pixels.shape == (3, 32, 48)
    assert example.targets.labels.tolist() == [1]
    torch.testing.assert_close(example.targets.boxes, torch.tensor([[12 / 48, 12 / 32, 16 / 48, 8 / 32]]))


def test_collate_pads_and_keeps_the_order(folder: Path) -> None:
    dataset = DetectionDataset(index_of(*SIZES), str(folder), STILL)
    batch = collate([dataset[i] for i in range(3)])
    assert batch.images.pixels.shape == (3, 3, 64, 48)
    assert (~batch.images.padding).flatten(1).sum(1).tolist() == [32 * 32, 32 * 48, 64 * 32]
    assert batch.image_ids == (10, 11, 12)
    assert batch.original_sizes == SIZES
    assert [len(t.labels) for t in batch.targets] == [1, 1, 1]


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = Location.read_bytes

    def counted(self: Location) -> bytes:
        names.append(self.uri.rpartition("/")[2])
        return original(self)

    monkeypatch.setattr(Location, "read_bytes", counted)
    return names


@pytest.mark.parametrize(
    ("options", "reads"),
    [
        ({"cache": "bytes"}, 3),
        ({"cache": "none"}, 6),
        ({"cache": "pixels"}, 3),
        ({"cache": "pixels", "cache_limit": 32 * 32 * 3 + 10}, 5),
        ({"cache_limit": 0}, 6),
    ],
)
def test_caches_save_reads_and_change_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], reads: int
) -> None:
    plain = DetectionDataset(index_of(*SIZES), folder, STILL, cache="none")
    expected = [plain[i] for i in range(3)]
    names = count_reads(monkeypatch)
    dataset = DetectionDataset(index_of(*SIZES), folder, STILL, **options)
    for _ in range(2):
        for i in range(3):
            assert_same(dataset[i], expected[i])
    assert len(names) == reads


def assert_same(a: Example, b: Example) -> None:
    assert a.image_id == b.image_id
    assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(a.targets.boxes, b.targets.boxes)
    assert torch.equal(a.targets.labels, b.targets.labels)


def test_pickling_leaves_the_cache_behind(folder: Path) -> None:
    dataset = DetectionDataset(index_of(*SIZES), folder, STILL, cache="pixels")
    before = len(pickle.dumps(dataset))
    for i in range(3):
        dataset[i]
    data = pickle.dumps(dataset)
    assert len(data) == before
    assert_same(pickle.loads(data)[2], dataset[2])


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_deliver_an_epoch(tmp_path: Path, start: str, workers: int) -> None:
    uris = write_shapes(locate(tmp_path), ShapesConfig(size=64), {"train": 12})["train"]
    index = read_coco(uris.annotations)
    transform = TrainTransform(
        config=AugmentConfig(short_sides=(48, 64), max_side=64, crop_resize=(), crop_min=42, crop_max=64)
    )
    dataset = DetectionDataset(index, uris.images, transform, cache="pixels")
    sampler = MicroBatchSampler(len(dataset), global_batch=4, seed=1)

    def epoch(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context=start if workers else None,
        )
        batches = list(loader)
        assert sorted(i for batch in batches for i in batch.image_ids) == list(range(1, 13))
        return [batch.images.pixels for batch in batches]

    # Augmentation follows from the place in the epoch, not from the process that does it, or from when it does.
    before = epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(epoch(workers), before, strict=True))
    sampler.set_epoch(1)
    assert not all(torch.equal(a, b) for a, b in zip(epoch(0), before, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"just text", "not an image"), (None, "cut short or damaged")],
)
def test_a_broken_image_is_named(folder: Path, content: bytes | None, message: str) -> None:
    if content is None:
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(stream, "PNG")
        content = stream.getvalue()[:2000]
    (folder / "1.png").write_bytes(content)
    dataset = DetectionDataset(index_of(*SIZES), folder, STILL)
    assert dataset[0].image_id == 10
    with pytest.raises(ImageError, match=rf"{folder}/1\.png: {message}"):
        dataset[1]
    with pytest.raises(ImageError, match=rf"{folder}/1\.png: {message}"):
        DetectionDataset(index_of(*SIZES), folder, STILL, cache="pixels")[1]


def test_a_missing_image_is_named(folder: Path) -> None:
    (folder / "2.png").unlink()
    with pytest.raises(StorageError, match=r"2\.png"):
        DetectionDataset(index_of(*SIZES), folder, STILL)[2]


def test_an_image_of_another_size_than_annotated_is_refused(folder: Path) -> None:
    dataset = DetectionDataset(index_of((32, 32), (48, 32)), folder, STILL)
    with pytest.raises(AnnotationError, match=r"1\.png: is 48x32, but x\.json says 32x48; correct"):
        dataset[1]


def test_an_index_without_images_is_refused(folder: Path) -> None:
    with pytest.raises(AnnotationError, match=r"x\.json: has no images"):
        DetectionDataset(index_of(), folder, STILL)


def test_real_images(shared: Path) -> None:
    root = shared / "data" / "coco_tiny"
    index = read_coco(root / "annotations" / "instances_val2017.json")
    dataset = DetectionDataset(index, root / "val2017", EvalTransform(size=ImageSize(short_side=64, max_side=107)))
    for item in range(20):
        example = dataset[item]
        image = index.images[item]
        assert len(example.targets.labels) == int((~image.crowd).sum())
        # min(64 / short, 107 / long) scales both sides, but for rounding.
        scale = min(64 / min(example.original_size), 107 / max(example.original_size))
        sides = np.array(example.pixels.shape[1:])
        np.testing.assert_allclose(sides, np.array(example.original_size) * scale, atol=2)


def test_the_next_sound_image_stands_in_with_the_augmentation_of_the_broken_one(folder: Path) -> None:
    index = index_of(*SIZES)
    files = [folder / image.file_name for image in index.images]
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[: len(whole) // 2])
    files[1].write_bytes(b"no image")
    draw = Draw(item=1, seed=(3, 0, 5))
    transform = TrainTransform(config=AugmentConfig(short_sides=(20, 24, 28, 32), max_side=64, crop=0.0))
    example = DetectionDataset(index, folder, transform, stand_ins=2)[draw]

    sound = DetectionDataset(index, folder, transform)[Draw(item=0, seed=draw.seed)]
    assert_same(replace(example, instead_of=()), sound)
    assert [image.file for image in example.instead_of] == [str(file) for file in files[1:]]
    assert example.instead_of[0].reason.startswith("not an image that can be read")
    assert collate([sound, example]).broken == example.instead_of
    for stand_ins, message in ((0, f"{files[1]}: not an image"), (1, "and 1 images behind it are broken too")):
        with pytest.raises(ImageError, match=message):
            DetectionDataset(index, folder, transform, stand_ins=stand_ins)[draw]
