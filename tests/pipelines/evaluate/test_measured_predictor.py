from __future__ import annotations

import pickle
from pathlib import Path

import torch

from pipelines.detect.images import ImageResult
from pipelines.detect.predictor import Predictor
from pipelines.detect.rows import SCHEMA
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measured_predictor import MeasuredPredictor, MeasuredPredictorFactory
from pipelines.evaluate.measures import MEASURES_SCHEMA, MeasuredResult, measured_table
from sparse_detr.detector import SparseDetr
from sparse_detr.records import ImageBatch, Output
from sparse_detr.storage.location import locate


def _assert_same(one: ImageResult, other: ImageResult) -> None:
    assert one.detections is not None
    assert other.detections is not None
    assert one.size == other.size
    assert torch.equal(one.detections.labels, other.detections.labels)
    torch.testing.assert_close(one.detections.scores, other.detections.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(one.detections.boxes, other.detections.boxes, rtol=0, atol=1e-2)


class Spy(torch.nn.Module):
    """Notes the ratios of the passes."""

    def __init__(self, model: SparseDetr) -> None:
        super().__init__()
        self.model = model
        self.image_size = model.image_size
        self.ratios: list[float | None] = []

    def forward(self, batch: ImageBatch, keep_ratio: float | None = None) -> Output:
        self.ratios.append(keep_ratio)
        return self.model(batch, keep_ratio)  # type: ignore[no-any-return]


def test_every_ratio_of_several_gives_what_it_gives_alone(model: SparseDetr, collection: Path) -> None:
    keys, ratios = ["00.jpg", "text.jpg", "01.jpg", "02.jpg"], (0.5, 0.1, 1.0)
    config = EvaluateConfig(model="m", images="i", annotations="a", keep_ratio=ratios, short_side=64, max_side=96)
    predictor = MeasuredPredictor(model, config, keep_ratios=ratios, overlap=True)
    together = predictor.detect(locate(collection), range(4), keys)
    expected_keys = ["00.jpg"] * 3 + ["text.jpg"] + ["01.jpg"] * 3 + ["02.jpg"] * 3
    assert [result.key for result in together] == expected_keys
    sound = [result for result in together if result.failure is None]
    assert [result.keep_ratio for result in sound if isinstance(result, MeasuredResult)] == list(ratios) * 3
    for place, ratio in enumerate(ratios):
        plain = Predictor(model, config, keep_ratio=ratio).detect(locate(collection), range(4), keys)
        alone = [result for result in plain if result.failure is None]
        for one, other in zip(sound[place::3], alone, strict=True):
            _assert_same(one, other)
            assert isinstance(one, MeasuredResult)
            assert one.seconds > 0
            assert max(one.input_size) <= 96
            # Corr: all levels and each of the four; a dense encoder has none.
            assert len(one.overlap) == (0 if ratio == 1.0 else 5)


def test_ratios_take_turns(model: SparseDetr, collection: Path) -> None:
    spy = Spy(model)
    config = EvaluateConfig(model="m", images="i", annotations="a", keep_ratio=(0.1, 0.5), short_side=64, batch_size=1)
    predictor = MeasuredPredictor(spy, config, keep_ratios=(0.1, 0.5))  # type: ignore[arg-type]
    predictor.detect(locate(collection), range(3), ["00.jpg", "01.jpg", "02.jpg"])
    assert spy.ratios == [0.1, 0.5, 0.5, 0.1, 0.1, 0.5]


def test_the_factory_travels_and_its_rows_hold_the_measures(model: SparseDetr, collection: Path) -> None:
    config = EvaluateConfig(model="m", images="i", annotations="a", keep_ratio=(0.1, 0.5), short_side=64)
    factory = MeasuredPredictorFactory(config=config, keep_ratios=(0.1, 0.5))
    sent = pickle.loads(pickle.dumps(factory))
    assert sent == factory
    results = sent(model, "cpu").detect(locate(collection), range(2), ["00.jpg", "text.jpg"])
    rows = measured_table(results, [7, 7, 8], root="/r", classes=None, fingerprint="")
    assert rows.schema.names == [*SCHEMA.names, *MEASURES_SCHEMA.names]
    assert rows.column("keep_ratio").to_pylist() == [0.1, 0.5, None]
    assert [size is None for size in rows.column("input_height").to_pylist()] == [False, False, True]
