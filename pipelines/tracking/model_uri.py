"""Model folders by MLflow's names: `models:/name@alias`, `models:/name/version`, `runs:/run id/path`.

An alias is moved at any time, so it is looked up once (`pinned`), and all processes of a job then read one version.
Where MLflow keeps artifacts in a store or on a disk that this process reaches itself, the folder is used where it is;
artifacts behind a tracking server are fetched once a machine into the cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipelines.recipes.paths import is_model_uri
from pipelines.tracking.mlflow_store import connect, resolved_uri
from sparse_detr.deadline import within
from sparse_detr.errors import CheckpointError, ConfigError, StorageError, StoreRefusedError, StoreUnavailableError
from sparse_detr.redaction import without_secrets
from sparse_detr.storage.access import check_access
from sparse_detr.storage.download import cache_folder
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.s3 import explained
from sparse_detr.weights.model_folder import MANIFEST

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

MODEL_DATA = "data/model"
"""The model folder within a model that training logs: MLflow puts there what it does not know itself."""

_LOOKUP_SECONDS, _FETCH_SECONDS = 12.0, 600.0
"""Longest question, since commands promise an error within 15 s, and longest download."""
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED")
_FORMS = "models:/name@alias, models:/name/version, models:/name/latest or runs:/run id/model"


def pinned(uri: str, tracking_uri: str | None = None) -> str:
    """The URI with its alias, or `latest`, replaced by the version that it means now; any other URI as it is.

    Args:
        uri: names a model folder.
        tracking_uri: MLflow's; None takes MLFLOW_TRACKING_URI.

    Raises:
        CheckpointError: there is no such model or alias.
        ConfigError: no MLflow is named, or the URI is of another form.
        StoreUnavailableError: MLflow does not answer.
    """
    if not uri.startswith("models:/"):
        return uri
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at:
        _require_form(bool(name and alias), uri)
        version = _asked(uri, tracking_uri, lambda client: client.get_model_version_by_alias(name, alias).version)
        return f"models:/{name}/{version}"
    name, slash, wanted = name.rpartition("/")
    _require_form(bool(wanted), uri)
    if slash and wanted == "latest":
        return f"models:/{name}/{_asked(uri, tracking_uri, lambda client: _latest(client, name))}"
    return uri


def model_folder(uri: str, tracking_uri: str | None = None) -> str:
    """Path or `s3://` URI of the model folder that a URI names; one that is not MLflow's is returned as it is.

    Raises:
        CheckpointError: there is no such model, or it is none of this project's.
        ConfigError: no MLflow is named, or the URI is of another form.
        StoreUnavailableError: MLflow does not answer.
    """
    return _folder(pinned(uri, tracking_uri), resolved_uri(tracking_uri)) if is_model_uri(uri) else uri


@cache
def _folder(uri: str, tracking_uri: str) -> str:
    root = _asked(uri, tracking_uri, lambda client: _artifact_uri(client, uri))
    if root.startswith(("file:", "s3://", "/")):
        return _within(locate(root), uri)
    return str(_fetched(root, uri, tracking_uri) / MODEL_DATA)


def _artifact_uri(client: MlflowClient, uri: str) -> str:
    """Where MLflow keeps the artifacts: a store, a disk, or `mlflow-artifacts:` behind its server."""
    scheme, _, rest = uri.partition(":/")
    head, _, tail = rest.partition("/")
    if scheme == "runs":
        _require_form(bool(head and tail), uri)
        return f"{client.get_run(head).info.artifact_uri.rstrip('/')}/{tail}"
    if not tail:
        return str(client.get_logged_model(head).artifact_location)
    source = client.get_model_version_download_uri(head, tail)
    return _artifact_uri(client, source) if is_model_uri(source) else str(source)


def _within(folder: Location, uri: str) -> str:
    # First what is quick to say so where the store is silent.
    check_access(folder)
    for place in (folder, folder.child(MODEL_DATA)):
        if place.child(MANIFEST).exists():
            return place.uri
    raise CheckpointError(
        f"model: {uri} is at {folder.uri}, which holds no model folder of sparse-detr; name one that training logged"
    )


def _fetched(root: str, uri: str, tracking_uri: str) -> Path:
    """A copy in this machine's cache, whole or not there: by the digest of its manifest, since a name may come to mean
    another model."""
    models = Path(cache_folder().child("models").path)
    with explained(str(models)):
        models.mkdir(parents=True, exist_ok=True)
    with explained(str(models)), tempfile.TemporaryDirectory(dir=models, ignore_cleanup_errors=True) as folder:
        manifest = _download(f"{root}/{MODEL_DATA}/{MANIFEST}", uri, tracking_uri, Path(folder, "manifest"))
        place = models / hashlib.sha256(manifest.read_bytes()).hexdigest()[:32]
        if place.is_dir():
            return place
        found = _download(root, uri, tracking_uri, Path(folder, "whole"))
        try:
            os.rename(found, place)
        except OSError:
            # Another process was quicker: a folder that is not empty is never replaced.
            if not place.is_dir():
                raise
    return place


def _download(artifact: str, uri: str, tracking_uri: str, target: Path) -> Path:
    """A file or a folder of MLflow's artifacts, below a new folder."""

    def work(_: MlflowClient) -> str:
        from mlflow.artifacts import download_artifacts

        target.mkdir()
        try:
            return str(download_artifacts(artifact_uri=artifact, dst_path=str(target), tracking_uri=tracking_uri))
        except (OSError, ImportError) as error:  # What `requests` raises is an OSError.
            raise StorageError(
                f"model: {uri}: its artifacts cannot be fetched ({without_secrets(str(error))[:300]})"
            ) from None

    return Path(_asked(uri, tracking_uri, work, _FETCH_SECONDS))


def _latest(client: MlflowClient, name: str) -> int:
    client.get_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise CheckpointError(f"model: the registered model {name} has no version yet")
    return max(int(version.version) for version in versions)


def _require_form(good: bool, uri: str) -> None:
    if not good:
        raise ConfigError(f"model: {uri!r} is none of MLflow's names; give {_FORMS}")


def _asked(uri: str, tracking_uri: str | None, work: Callable[[MlflowClient], T], seconds: float | None = None) -> T:
    from mlflow.exceptions import MlflowException

    address = resolved_uri(tracking_uri)
    if address == "none":
        raise ConfigError(
            f"model: {uri} is a name of MLflow's, but no MLflow is named; set MLFLOW_TRACKING_URI or tracking_uri"
        )
    shown, file = without_secrets(address), address.removeprefix("sqlite:///")
    if file != address and not Path(file).is_file():
        # A client would make one.
        raise CheckpointError(f"model: {uri} is not known to MLflow: {shown} is not there; correct the tracking URI")
    client, seconds = connect(address), _LOOKUP_SECONDS if seconds is None else seconds
    try:
        return within(seconds, lambda: work(client))
    except TimeoutError:
        raise StoreUnavailableError(f"model: MLflow at {shown} does not answer in {seconds:.0f} s") from None
    except MlflowException as error:
        said = without_secrets(" ".join(str(error).split()))[:300]
        if error.error_code in _UNKNOWN:
            raise CheckpointError(f"model: {uri} is not known to MLflow at {shown} ({said}); give {_FORMS}") from None
        if error.error_code in _REFUSED:
            raise StoreRefusedError(
                f"model: MLflow at {shown} refuses {uri} ({said}); check MLFLOW_TRACKING_USERNAME and its password"
            ) from None
        raise StoreUnavailableError(f"model: MLflow at {shown} cannot be asked for {uri} ({said})") from None
