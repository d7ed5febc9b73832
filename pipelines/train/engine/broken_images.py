"""Training images that cannot be used: which were met so far, and when they are too many.

The data set lets the next sound image stand in for a broken one, and says so with the batch. So it is known in the step
that the image belongs to, whichever process decoded it, and all ranks hear of it in that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipelines.cli.console import listing
from pipelines.recipes.data import DataConfig
from pipelines.train.engine.ranks import Ranks
from sparse_detr.errors import ErrorBudgetError, ImageError
from sparse_detr.records import Batch, BrokenImage


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenLimit:
    """How many training images may be broken; by default none."""

    images: int = 0
    mode: Literal["stop", "skip"] = "stop"

    @classmethod
    def of(cls, config: DataConfig, images: int) -> BrokenLimit:
        """Of so many images; a share is rounded down."""
        if config.broken_images == "stop":
            return cls()
        return cls(images=int(config.broken_share * images), mode="skip")


class BrokenImages:
    """The broken images that any rank has met, by file; the same on every rank."""

    def __init__(self, limit: BrokenLimit, found: Sequence[BrokenImage] = ()) -> None:
        self._limit = limit
        self._found = {image.file: image for image in found}

    @property
    def found(self) -> tuple[BrokenImage, ...]:
        """All of them, in the order of their names."""
        return tuple(self._found[file] for file in sorted(self._found))

    @property
    def metrics(self) -> dict[str, float]:
        """Their number, for the history of a run that skips them."""
        return {"broken_images": float(len(self._found))} if self._limit.mode == "skip" else {}

    def new(self, batches: Sequence[Batch]) -> list[BrokenImage]:
        """Those of this rank's micro-batches that were not known before."""
        return [image for batch in batches for image in batch.broken if image.file not in self._found]

    def share(self, new: Sequence[BrokenImage], ranks: Ranks) -> None:
        """Take in what any rank found; every rank must call it.

        Raises:
            ImageError: the run is to stop at the first.
            ErrorBudgetError: there are more than the run allows.
        """
        for images in ranks.gather_objects(list(new)):
            self._found |= {image.file: image for image in images}
        if len(self._found) <= self._limit.images:
            return
        first = self.found[0]
        if self._limit.mode == "stop":
            raise ImageError(f"{first.file}: {first.reason}; or leave such images out with data.broken_images: skip")
        lines = [f"{image.file}: {image.reason}" for image in self.found]
        raise ErrorBudgetError(
            f"data.broken_share: allows {self._limit.images} broken training images, and {len(lines)} were met; repair "
            "them, take them out of the annotations, or allow more; `sparse-detr data check` finds all.\n"
            + listing("Broken images", lines)
        )
