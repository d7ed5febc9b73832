"""Credentials of the driver for its workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from pipelines.recipes.paths import absolute_tracking_uri
from sparse_detr.redaction import SECRET_VARIABLES

_TRACKING = "MLFLOW_TRACKING_URI"
_CARRIED = (
    *(name for name in SECRET_VARIABLES if not name.startswith("RAY_")),
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "MLFLOW_S3_ENDPOINT_URL",
    _TRACKING,
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_INSECURE_TLS",
)
"""Variables that open the object store and MLflow."""


class DriverAccess:
    """The variables that open the driver's object store and MLflow, for a cluster that was started without them.

    They travel as an argument: Ray's runtime environment would show them in the dashboard. Every process that
    unpickles this has them in its own environment from then on. That reaches Ray Train's controller too, which
    writes to the store and runs no code of ours. As a text it shows names alone.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._variables = {name: environment[name] for name in _CARRIED if name in environment}
        if _TRACKING in self._variables:
            self._variables[_TRACKING] = absolute_tracking_uri(self._variables[_TRACKING])

    def __repr__(self) -> str:
        return f"DriverAccess({', '.join(self._variables)})"

    def __reduce__(self) -> tuple[Callable[[dict[str, str]], DriverAccess], tuple[dict[str, str]]]:
        return _arrive, (self._variables,)


def _arrive(variables: dict[str, str]) -> DriverAccess:
    os.environ.update(variables)
    return DriverAccess(variables)
