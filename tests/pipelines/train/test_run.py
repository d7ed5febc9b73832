"""Ray Train for real: two workers, checkpoints in S3, restarts. Everything here shares one local Ray."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from pipelines.cluster.session import RaySession
from pipelines.recipes.config import RunConfig
from pipelines.recipes.override import override
from pipelines.train.engine.checkpoint_store import CheckpointStore, Position
from pipelines.train.engine.progress import StepProgress
from sparse_detr.errors import ConfigError, ImageError, OutputExistsError
from sparse_detr.storage.location import Location, locate
from tests.small_training import without_times

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def stored_run(quick_run: RunConfig, store: Location, mlflow_uri: str, ray_cluster: RaySession) -> RunConfig:
    """Two workers, images and results in the S3 store."""
    source = Path(quick_run.data.train_annotations).parent
    store.child("data").copy_tree_from(source)
    uris = {
        "data.train_annotations": store.child("data/train.json").uri,
        "data.train_images": store.child("data/train").uri,
        "data.val_annotations": store.child("data/val.json").uri,
        "data.val_images": store.child("data/val").uri,
    }
    changes = {"training.workers": 2, "output": store.child("run").uri, "tracking_uri": mlflow_uri}
    return override(quick_run, uris | changes)


def test_two_workers_train_from_and_into_s3(stored_run: RunConfig) -> None:
    from mlflow import MlflowClient

    from pipelines.tracking.model_uri import model_folder
    from pipelines.train.run import train
    from sparse_detr.detector import SparseDetr

    seen: list[StepProgress] = []
    stored_run = override(stored_run, {"registered_model": "test-run", "model_alias": "latest-shapes"})
    result = train(stored_run, on_progress=seen.append)

    assert [metrics["epoch"] for metrics in result.history] == [1.0, 2.0]
    assert all({"loss", "ap", "ap50", "images_per_second"} <= metrics.keys() for metrics in result.history)
    assert result.images_per_second > 0
    assert seen[-1].epoch == 2
    assert [progress.step for progress in seen] == sorted(progress.step for progress in seen)

    model = SparseDetr.from_pretrained(result.checkpoint)
    assert result.checkpoint == f"{stored_run.output}/model"
    assert model.classes is not None
    assert model.classes.names == ("circle", "square", "star", "triangle")
    output = locate(stored_run.output)
    assert json.loads(output.child("result.json").read_bytes())["history"] == [dict(m) for m in result.history]

    assert stored_run.tracking_uri is not None
    assert result.run_id is not None
    run = MlflowClient(tracking_uri=stored_run.tracking_uri).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == str(stored_run.optimizer.lr)
    assert run.data.metrics["ap"] == pytest.approx(result.history[-1]["ap"])
    assert run.data.metrics["dropped_boxes"] == 0
    assert run.data.tags["sparse_detr.starting_weights"] == "all weights start fresh"
    client = MlflowClient(tracking_uri=stored_run.tracking_uri)
    assert {used.dataset.name for used in run.inputs.dataset_inputs} == {"train", "val"}
    assert {"curves", "model", "config.json", "ap_of_classes.json"} <= {
        file.path for file in client.list_artifacts(result.run_id)
    }
    assert result.registered == "models:/test-run/1"
    named = SparseDetr.from_pretrained(model_folder("models:/test-run@latest-shapes", stored_run.tracking_uri))
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in model.state_dict().items())

    with pytest.raises(OutputExistsError, match="overwrite or resume"):
        train(stored_run)

    longer = train(override(stored_run, {"training.epochs": 3, "existing": "resume"}))
    assert [dict(m) for m in longer.history[:2]] == [dict(m) for m in result.history]
    assert longer.history[2]["epoch"] == 3.0
    assert longer.run_id == result.run_id
    for name in ("loss", "ap", "dropped_boxes"):
        steps = [point.step for point in client.get_metric_history(result.run_id, name)]
        assert steps == ([0] if name == "dropped_boxes" else [1, 2, 3]), name
    assert {"step_loss", "step_memory_mib"} <= client.get_run(result.run_id).data.metrics.keys()


def test_a_worker_killed_within_an_epoch_costs_nothing_but_time(
    stored_run: RunConfig, ray_cluster: RaySession, capfd: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL once a checkpoint of the second epoch is whole; history and weights are those of an undisturbed run."""
    from pipelines.train.run import train
    from sparse_detr.detector import SparseDetr

    changes = {
        "training.epochs": 4,
        # Twelve steps an epoch, so that most checkpoints are within one.
        "training.global_batch": 2,
        "training.micro_batch": 1,
        "training.checkpoint_steps": 1,
        "model.dropout": 0.1,
        "data.augment.crop": 0.5,
        "tracking_uri": "none",
    }
    config = override(stored_run, changes)
    undisturbed = train(override(config, {"output": f"{stored_run.output}-undisturbed"}))
    checkpoints = CheckpointStore(folder=locate(stored_run.output).child("checkpoints"))
    killed: list[Position] = []

    over = threading.Event()

    def kill_once() -> None:
        while not over.wait(0.05) and not killed:
            newest = checkpoints.newest()
            if newest is None or newest.epoch < 1:
                continue
            workers = _pids_of_workers(ray_cluster.address)
            with suppress(ProcessLookupError), stopped(workers):  # so that what is the newest stays the newest
                newest = checkpoints.newest()
                if newest is not None and newest.epoch_step and len(workers) == 2:
                    os.kill(workers[-1], signal.SIGKILL)
                    killed.append(newest)

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill_once)
        try:
            result = train(config)
        finally:
            over.set()
        killer.result()

    assert killed
    assert without_times(result.history) == without_times(undisturbed.history)
    mine, other = (SparseDetr.from_pretrained(each.checkpoint).state_dict() for each in (result, undisturbed))
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert "Reporting training result" not in "".join(capfd.readouterr())


def _pids_of_workers(address: str) -> list[int]:
    from ray.util.state import list_actors

    # The address: other clusters may run on this machine.
    wanted = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    return [int(actor.pid) for actor in list_actors(address=address, filters=wanted, detail=True)]


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """The processes stand still for a moment."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_broken_image_is_reported_and_not_retried_for_ever(stored_run: RunConfig, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from pipelines.train.run import train

    source = tmp_path / "train"
    source.mkdir()
    locate(stored_run.data.train_images).download_to(source)
    name = sorted(source.iterdir())[3].name
    (source / name).write_bytes(b"this is no picture")
    config = override(stored_run, {"data.train_images": str(source), "data.loader_workers": 1})

    with pytest.raises(ImageError, match=name):
        train(override(config, {"tracking_uri": "none"}))

    # The message says how it goes on.
    skipping = {"data.broken_images": "skip", "data.broken_share": 0.05, "existing": "resume"}
    result = train(override(config, skipping))
    assert [metrics["broken_images"] for metrics in result.history] == [1.0, 1.0]
    (broken,) = json.loads(locate(config.output).child("result.json").read_bytes())["broken_images"]
    assert broken["file"] == str(source / name)
    assert broken["reason"].startswith("not an image that can be read")
    assert config.tracking_uri is not None
    assert result.run_id is not None
    client = MlflowClient(tracking_uri=config.tracking_uri)
    assert client.get_run(result.run_id).data.metrics["broken_images"] == 1
    text = Path(client.download_artifacts(result.run_id, "broken_images.txt", str(tmp_path))).read_text()
    assert text == f"{broken['file']}: {broken['reason']}"


def test_what_the_cluster_cannot_hold_is_refused(stored_run: RunConfig) -> None:
    from pipelines.train.run import train

    with pytest.raises(ConfigError, match="8 take 8 CPUs together, the cluster has 4"):
        train(override(stored_run, {"training.workers": 8}))


def test_a_missing_image_is_found_before_any_worker_starts(stored_run: RunConfig, tmp_path: Path) -> None:
    from pipelines.train.run import train
    from sparse_detr.errors import AnnotationError

    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match=r"\.jpg"):
        train(override(stored_run, {"data.val_images": str(tmp_path / "empty")}))
