"""Options of `sparse-detr doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorConfig:
    """Form of the findings."""

    json: bool = False
    """Print the findings as JSON instead of a table."""
