"""Detections as a Ray Dataset: lazy, with the columns of a run, to go on with."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.cluster.session import RaySession
from pipelines.cluster.user_errors import find
from pipelines.detect.attempts import Attempts
from pipelines.detect.predictor import Predictor
from pipelines.detect.rows import SCHEMA, results_table, to_coco
from pipelines.predict import dataset
from pipelines.predict.config import InferenceConfig
from pipelines.predict.dataset import CutTask, detect_dataset
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def config(model_folder: str, collection: Path) -> InferenceConfig:
    return InferenceConfig(
        model=model_folder, images=str(collection), short_side=64, max_side=96, score_threshold=0.0,
        max_detections=10, workers=2, images_per_block=5,
    )  # fmt: skip


def test_without_ray_it_says_what_to_do(config: InferenceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"ray: not connected; call ray\.init"):
        detect_dataset(config)


def test_rows_are_those_of_the_predictor_and_go_on(
    config: InferenceConfig, ray_cluster: RaySession, model: SparseDetr, collection: Path, sound: dict[str, bytes],
    broken: dict[str, bytes],
) -> None:  # fmt: skip
    from ray.data.expressions import col

    kept = detect_dataset(config).materialize()
    assert kept.count() == len(sound) + len(broken)
    assert kept.schema().names == SCHEMA.names
    assert kept.filter(expr=col("error").is_not_null()).count() == len(broken)
    rows = {row["key"]: row for row in kept.iter_rows()}
    names = sorted(sound)
    results = Predictor(model, config)([collection / name for name in names])
    table = results_table(results, [1] * len(names), root="", classes=model.classes, fingerprint="f")
    for name, expected in zip(names, table.to_pylist(), strict=True):
        row = rows[name]
        assert (row["height"], row["width"]) == (expected["height"], expected["width"])
        entries = to_coco({**row, "image_id": 1})
        assert [entry["category_id"] for entry in entries] == [box["category_id"] for box in expected["detections"]]
        assert [entry["score"] for entry in entries] == pytest.approx(
            [box["score"] for box in expected["detections"]], abs=1e-5
        )


def test_a_look_that_stops_early_is_no_death_of_a_worker(
    config: InferenceConfig, ray_cluster: RaySession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each execution counts the attempts at a block for itself; five of one would be an error."""
    import ray

    class Remembering(Attempts):
        def __init__(self) -> None:
            super().__init__()
            self.blocks: dict[Hashable, int] = {}

        def begin(self, block: Hashable) -> int:
            self.blocks[block] = super().begin(block)
            return self.blocks[block]

        def done(self, block: Hashable) -> None:
            pass  # As if every look had cut all of its blocks short.

        def seen(self) -> dict[Hashable, int]:
            return self.blocks

    actor = ray.remote(num_cpus=0)(Remembering).remote()
    monkeypatch.setattr(dataset, "start_attempts", lambda: actor)
    found = detect_dataset(replace(config, images_per_block=4))
    for _ in range(2):
        assert found.count() == 16
    seen = ray.get(actor.seen.remote())
    assert set(seen.values()) == {1}
    assert len(seen) == 2 * 4


def test_a_user_error_in_a_worker_ends_the_job_in_its_own_words(
    config: InferenceConfig, ray_cluster: RaySession, model: SparseDetr, tmp_path: Path
) -> None:
    from sparse_detr.weights.model_folder import save_model

    save_model(str(tmp_path / "model"), model)
    lazy = detect_dataset(InferenceConfig(model=str(tmp_path / "model"), images=config.images, workers=1))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x01\x02\x03")
    with pytest.raises(Exception, match=r"model\.safetensors") as caught:
        lazy.take_all()
    assert isinstance(find(caught.value), CheckpointError)


def test_a_task_is_cut_into_blocks() -> None:
    def sizes(rows: int) -> Iterator[int]:
        yield from (block.num_rows for block in CutTask(rows=4)(pa.table({"index": list(range(rows))})))

    assert list(sizes(10)) == [4, 4, 2]
    assert list(sizes(4)) == [4]
