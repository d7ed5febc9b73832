"""Fixtures that every test may use."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    # Our packages are imported inside the fixtures: this file is read before jaxtyping's import hook is in place.
    from pipelines.cluster.session import RaySession
    from pipelines.recipes.config import RunConfig
    from pipelines.services.s3_server import LocalS3
    from sparse_detr.storage.location import Location

ROOT = Path(__file__).resolve().parents[1]

# Processes that share the cores gain nothing from a second thread each. Set here, before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests share a process: those of one file, for the fixtures of their module, and all that use the cluster.

    The cluster's come first, as they are the longest row.
    """
    for item in items:
        group = "cluster" if "ray_cluster" in getattr(item, "fixturenames", ()) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: "ray_cluster" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded tensors and real images beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: recorded tensors and real images lie there")
    return folder


@pytest.fixture(scope="session")
def version_0_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint that version 0.1 wrote, and what it computed from it: see `tests/fixtures`."""
    source, folder = ROOT / "tests" / "fixtures" / "version_0_1", tmp_path_factory.mktemp("version_0_1")
    with tarfile.open(source / "checkpoint.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    shutil.copy(source / "expected.npz", folder)
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A running S3 server with the bucket `tests` and an Iceberg catalog; the session's AWS environment names it."""
    from pipelines.services.s3_server import local_s3

    with local_s3(tmp_path_factory.mktemp("s3"), iceberg=True) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        server.create_bucket("tests")
        yield server


@pytest.fixture
def store(s3: LocalS3, request: pytest.FixtureRequest) -> Location:
    """An empty prefix of the session's S3 server for one test."""
    from sparse_detr.storage.location import locate

    return locate(f"s3://tests/{re.sub('[^A-Za-z0-9_-]', '-', request.node.name)}-{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A sqlite tracking store, created once: its migrations take about ten seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="session")
def ray_cluster(s3: LocalS3) -> Iterator[RaySession]:
    """One local Ray for the whole session, which starts in 10 s; its workers reach the session's S3 server.

    Four logical CPUs whatever the machine has, so that nothing waits for room.
    """
    from pipelines.cluster.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(logical_cpus=4) as session:
            yield session


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few generated 64x64 pictures: `train.json`, `train/` (24) and `val.json`, `val/` (8)."""
    from sparse_detr.data.shapes import ShapesConfig, write_shapes
    from sparse_detr.storage.location import locate

    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(locate(folder), ShapesConfig(size=64, max_objects=3, min_side=0.25), {"train": 24, "val": 8})
    return folder


@pytest.fixture
def quick_run(shapes_folder: Path, tmp_path: Path) -> RunConfig:
    """The recipe `tiny` on those pictures, smaller still: a step takes a fraction of a second."""
    from pipelines.recipes.override import override
    from pipelines.recipes.registry import get_recipe
    from tests.small_training import SMALL

    changes = {
        "data.train_annotations": str(shapes_folder / "train.json"),
        "data.train_images": str(shapes_folder / "train"),
        "data.val_annotations": str(shapes_folder / "val.json"),
        "data.val_images": str(shapes_folder / "val"),
        **SMALL,
        "training.global_batch": 8,
        "training.workers": 1,
        "training.epochs": 2,
        "output": str(tmp_path / "run"),
        "tracking_uri": "none",
    }
    return override(get_recipe("tiny"), changes)
