from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.detect.config import DetectionConfig
from pipelines.detect.images import ImageRef, ImageResult
from pipelines.detect.predictor import Predictor
from pipelines.detect.prefetch import Block
from pipelines.detect.tiles import TileGrid
from pipelines.predict.config import PredictConfig
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ConfigError, ImageError
from sparse_detr.records import ImageBatch, ImageSize, Output
from sparse_detr.storage.location import Location, locate

FAILURES = {
    "empty.jpg": ("decode", "ImageError"),
    "truncated.jpg": ("decode", "ImageError"),
    "text.jpg": ("decode", "ImageError"),
    "bomb.png": ("decode", "ImageError"),
    "missing.jpg": ("fetch", "StorageError"),
    "../outside.jpg": ("fetch", "StorageError"),
}


def _config(**changes: object) -> PredictConfig:
    values: dict[str, object] = {
        "model": "m", "images": "i", "output": "o", "short_side": 64, "max_side": 96, "batch_size": 3,
    }  # fmt: skip
    return PredictConfig(**{**values, **changes})  # type: ignore[arg-type]


def _detect(model: SparseDetr, folder: Path, keys: list[str], **changes: object) -> list[ImageResult]:
    config = _config(**changes)
    return Predictor(model, config, keep_ratio=config.keep_ratio).detect(locate(folder), range(len(keys)), keys)


def _assert_same(one: ImageResult, other: ImageResult) -> None:
    assert one.detections is not None
    assert other.detections is not None
    assert one.size == other.size
    assert torch.equal(one.detections.labels, other.detections.labels)
    torch.testing.assert_close(one.detections.scores, other.detections.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.detections.boxes, other.detections.boxes, rtol=0, atol=1e-2)


class Spy(torch.nn.Module):
    """Notes the batches that pass, and fails where told to."""

    def __init__(self, model: SparseDetr, poison: float | None = None) -> None:
        super().__init__()
        self.model = model
        self.image_size = model.image_size
        self.poison = poison
        self.batches: list[ImageBatch] = []
        self.ratios: list[float | None] = []

    def forward(self, batch: ImageBatch, keep_ratio: float | None = None) -> Output:
        self.batches.append(batch)
        self.ratios.append(keep_ratio)
        if self.poison is not None and bool((batch.pixels.mean((1, 2, 3)) == self.poison).any()):
            raise RuntimeError("out of memory")
        return self.model(batch, keep_ratio)  # type: ignore[no-any-return]


def test_every_image_has_one_result_in_order(
    model: SparseDetr, collection: Path, sound: dict[str, bytes], broken: dict[str, bytes]
) -> None:
    keys = sorted([*sound, *broken, "missing.jpg", "../outside.jpg"])
    results = _detect(model, collection, keys)
    assert [result.key for result in results] == keys
    for result in results:
        if result.key in sound:
            assert result.failure is None
            assert result.detections is not None
            assert len(result.detections.scores) > 0
        else:
            assert result.detections is None
            assert result.failure is not None
            assert (result.failure.stage, result.failure.type) == FAILURES[result.key]
            assert result.key in result.failure.message


def test_detections_do_not_depend_on_neighbours(
    model: SparseDetr, collection: Path, sound: dict[str, bytes], broken: dict[str, bytes]
) -> None:
    """Alone, in other batches, and among broken images: the same, to rounding."""
    keys = sorted(sound)
    alone = [_detect(model, collection, [key], batch_size=1)[0] for key in keys]
    together = _detect(model, collection, keys, batch_size=4)
    mixed = [r for r in _detect(model, collection, [*broken, *reversed(keys)]) if r.key in sound]
    for one, two, three in zip(alone, together, reversed(mixed), strict=True):
        _assert_same(one, two)
        _assert_same(one, three)


def test_a_batch_holds_images_of_one_shape_and_is_filled(
    model: SparseDetr, collection: Path, sound: dict[str, bytes]
) -> None:
    spy = Spy(model)
    _detect(spy, collection, sorted(sound), keep_ratio=0.5)  # type: ignore[arg-type]
    assert not any(batch.padding.any() for batch in spy.batches)
    assert sum(map(len, spy.batches)) == len(sound)
    assert max(map(len, spy.batches)) == 3
    assert set(spy.ratios) == {0.5}


def test_waiting_images_are_bounded(
    model: SparseDetr, tmp_path: Path, make_picture: Callable[[int, int, int], bytes]
) -> None:
    """With every image of another shape none finds a neighbour, and still few are held at a time."""
    keys = []
    for i in range(12):
        (tmp_path / f"{i:02d}.jpg").write_bytes(make_picture(i, 64, 64 + 2 * i))
        keys.append(f"{i:02d}.jpg")
    spy = Spy(model)
    predictor = Predictor(spy, _config(batch_size=2))  # type: ignore[arg-type]
    ahead: list[int] = []

    def place(key: str) -> Location:
        ahead.append(int(key[:2]) - len(spy.batches))
        return locate(tmp_path).child(key)

    images = [ImageRef(index=i, key=key) for i, key in enumerate(keys)]
    (results,) = predictor.detect_blocks(place, [Block(images=images)])
    assert len(results) == 12
    # Four open batches of two, and as many images as are loaded ahead of them: four threads and a batch.
    assert max(ahead) <= 8 + 6


def test_fewer_images_wait_where_each_has_tiles(
    model: SparseDetr, tmp_path: Path, make_picture: Callable[[int, int, int], bytes]
) -> None:
    """As many as there are threads, and none to fill batches: 41 views of an image do that."""
    (tmp_path / "a.jpg").write_bytes(make_picture(0, 64, 96))
    spy = Spy(model)
    predictor = Predictor(spy, _config(batch_size=2, fetch_threads=3), tiles=TileGrid(side=48))  # type: ignore[arg-type]
    placed: list[bool] = []

    def place(key: str) -> Location:
        placed.append(bool(spy.batches))
        return locate(tmp_path).child(key)

    images = [ImageRef(index=i, key="a.jpg") for i in range(8)]
    (results,) = predictor.detect_blocks(place, [Block(images=images)])
    assert len(results) == len(placed) == 8
    assert placed.count(False) <= 3


def test_an_image_that_the_model_cannot_take_fails_alone(
    model: SparseDetr, collection: Path, sound: dict[str, bytes]
) -> None:
    plain = Spy(model)
    keys = ["00.jpg", "02.jpg", "05.jpg"]
    expected = _detect(plain, collection, keys)  # type: ignore[arg-type]
    poison = float(plain.batches[0].pixels[1].mean())
    results = _detect(Spy(model, poison), collection, keys)  # type: ignore[arg-type]
    assert results[1].failure is not None
    assert (results[1].failure.stage, results[1].failure.message) == ("model", "out of memory")
    _assert_same(results[0], expected[0])
    _assert_same(results[2], expected[2])


def test_output_that_is_not_finite_is_a_failure(model: SparseDetr, collection: Path) -> None:
    class Diverged(torch.nn.Module):
        image_size = None

        def forward(self, batch: ImageBatch, keep_ratio: float | None = None) -> Output:
            output = model(batch)
            output.logits[0, 0, 0] = float("nan")
            return output  # type: ignore[no-any-return]

    (result,) = _detect(Diverged(), collection, ["00.jpg"])  # type: ignore[arg-type]
    assert result.failure is not None
    assert "not finite" in result.failure.message
    with pytest.raises(ImageError, match="blank image"):
        Predictor(Diverged(), _config()).check()  # type: ignore[arg-type]


def test_threshold_and_limit(model: SparseDetr, collection: Path) -> None:
    config = _config(max_detections=15)
    every = Predictor(model, config).detect(locate(collection), [0], ["00.jpg"])[0].detections
    assert every is not None
    assert len(every.scores) == 15
    threshold = float(every.scores[4])
    some = Predictor(model, config, score_threshold=threshold).detect(locate(collection), [0], ["00.jpg"])[0]
    assert some.detections is not None
    torch.testing.assert_close(some.detections.scores, every.scores[:5])


def test_keep_ratio_changes_what_the_model_does(model: SparseDetr, collection: Path) -> None:
    few = _detect(model, collection, ["00.jpg"], keep_ratio=0.05)[0].detections
    many = _detect(model, collection, ["00.jpg"], keep_ratio=0.9)[0].detections
    assert few is not None
    assert many is not None
    assert not torch.allclose(few.scores, many.scores, atol=1e-5)


def test_check_passes_a_sound_model_and_names_a_ratio_that_it_cannot_serve(model: SparseDetr) -> None:
    Predictor(model, _config()).check()
    dense = SparseDetr(replace(model.config, keep_ratio=1.0))
    with pytest.raises(ConfigError, match="keep_ratio"):
        Predictor(dense, _config(), keep_ratio=0.5).check()


def test_a_tiny_model_sees_its_own_size_by_default(model: SparseDetr, collection: Path) -> None:
    """128 pixels, as the recipe `tiny` evaluates it."""
    spy = Spy(model)
    spy.image_size = ImageSize(short_side=128, max_side=128)
    Predictor(spy, DetectionConfig(model="m", images="i")).detect(locate(collection), [0], ["04.jpg"])  # type: ignore[arg-type]
    assert [batch.pixels.shape[2:] for batch in spy.batches] == [(85, 127)]
