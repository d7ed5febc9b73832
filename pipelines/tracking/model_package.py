"""A model folder as a model of MLflow's own kind, which its servers and `mlflow.pyfunc.load_model` know, and its place
in the registry."""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.storage.location import locate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

    from pipelines.tracking.tracker import Registration

_LOADER = "pipelines.detect.served"
"""Module that loads it: by name, and nothing is pickled."""
MODEL_ARTIFACT = "model"
"""Artifact folder of the run's newest model."""
IMAGE = "image"
"""Input column: the files' bytes, JPEG and the like."""
SCORE_THRESHOLD, MAX_DETECTIONS = 0.3, 100
_EXAMPLE_SIDES = (96, 128)
"""Height and width of the input example, pixels."""

DATA_TAG, AP_TAG, DIGEST_TAG = "sparse_detr.val_data", "sparse_detr.ap", "sparse_detr.model_sha256"
"""Tags of a registered version: digest of the validation data, AP on it, digest of the model's manifest."""


def write_package(folder: str | Path, target: Path) -> str:
    """Write an MLflow model around the model of a model folder, local or in a store.

    Args:
        folder: as training writes it.
        target: a local folder that is not there yet.

    Returns:
        SHA-256 of the folder's manifest, which holds those of its files.
    """
    # MLflow keeps the name of what it is given: see `model_uri.MODEL_DATA`.
    data = target.with_name(f"{target.name}-data") / "model"
    locate(folder).download_to(data)
    with _quiet():
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            str(target),
            loader_module=_LOADER,
            data_path=str(data),
            signature=_signature(),
            input_example=_example(),
            pip_requirements=[f"sparse-detr=={installed('sparse-detr')}"],
        )
    return hashlib.sha256((data / "manifest.json").read_bytes()).hexdigest()


def log_model(
    client: MlflowClient, run_id: str, folder: str | Path, registration: Registration | None, late: threading.Event
) -> str | None:
    """Log a model folder as the run's newest model, and register it.

    Args:
        client: of the run's MLflow.
        run_id: of the run.
        folder: as training writes it.
        registration: its place in the registry, if any.
        late: once it is set nobody waits any more, and nothing further is done.

    Returns:
        `models:/name/version` where it was registered.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        package = Path(place, "package")
        digest = write_package(folder, package)
        client.log_artifacts(run_id, str(package), MODEL_ARTIFACT)
        if registration is None or late.is_set():
            return None
        # A place of its own: the run that goes on writes another model to the other one.
        kept = f"models/{digest[:12]}"
        client.log_artifacts(run_id, str(package), kept)
    if late.is_set():
        return None
    version = register(client, run_id, registration, source=f"runs:/{run_id}/{kept}", digest=digest)
    return f"models:/{registration.name}/{version}"


def register(client: MlflowClient, run_id: str, registration: Registration, *, source: str, digest: str) -> str:
    """Make a model of the run a version of a registered model; the same model of a run is registered once.

    The alias moves to it, unless the version that bears it was measured on the same data with a higher AP.

    Args:
        client: of the run's MLflow.
        run_id: that trained it.
        registration: name, alias, AP and data.
        source: URI of the artifacts, which nobody writes to again.
        digest: of the model's manifest.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    name, ap = registration.name, registration.ap
    with suppress(MlflowException):  # It is there; where it could not be made, the next call says so.
        client.create_registered_model(name)
    tags = {DIGEST_TAG: digest, DATA_TAG: registration.data} | ({} if ap is None else {AP_TAG: repr(ap)})
    found = [v for v in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
             if v.tags.get(DIGEST_TAG) == digest]  # fmt: skip
    new = found[0] if found else client.create_model_version(name, source, run_id, tags=tags)
    if _may_take(_holder(client, name, registration.alias), tags):
        client.set_registered_model_alias(name, registration.alias, new.version)
    return str(new.version)


def _holder(client: MlflowClient, name: str, alias: str) -> Any:
    """The version that bears the alias; None where none does, which only the registry can say."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _may_take(holder: Any, tags: dict[str, str]) -> bool:
    if holder is None or holder.tags.get(DATA_TAG) != tags[DATA_TAG]:
        return True
    return float(tags.get(AP_TAG, -1.0)) >= float(holder.tags.get(AP_TAG, -1.0))


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    numbers = Array(DataType.double)
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(numbers, "scores"),
        ColSpec(Array(numbers), "boxes"),
        ColSpec(DataType.string, "error"),
    ]
    params = [
        ParamSpec("score_threshold", DataType.double, SCORE_THRESHOLD),
        ParamSpec("max_detections", DataType.long, MAX_DETECTIONS),
        ParamSpec("keep_ratio", DataType.double, 0.0),
    ]
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, IMAGE)]), outputs=Schema(outputs), params=ParamSchema(params)
    )


def _example() -> Any:
    """A table of one image: a disc before a plain ground, so that no image of a user's is in it."""
    import pandas as pd  # type: ignore[import-untyped]
    from PIL import Image, ImageDraw

    height, width = _EXAMPLE_SIDES
    picture = Image.new("RGB", (width, height), (200, 200, 190))
    ImageDraw.Draw(picture).ellipse((30, 20, 80, 70), fill=(180, 40, 40))
    file = io.BytesIO()
    picture.save(file, "JPEG")
    return pd.DataFrame({IMAGE: [file.getvalue()]})


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow tells what it does, and warns of the requirements that it does not infer."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
