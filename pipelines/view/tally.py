"""Counts over the rows of a prediction, and a random choice of them, in memory that does not grow with the rows."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BINS = 20
"""Of the histogram of scores, from 0 to 1."""
EXAMPLES = 3
"""Of each kind of error."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """A class, and how often it was found."""

    label: int
    name: str
    boxes: int
    images: int
    """Images with at least one box of it."""


@dataclass(slots=True, kw_only=True)
class ErrorKind:
    """Images that fail at the same stage with the same class of exception."""

    stage: str
    type: str
    images: int = 0
    examples: list[Row] = field(default_factory=list)
    """The first few: `uri` and `message`."""


_Chosen = tuple[float, int, Row]
"""Random number by which a row is chosen, number of the row, row."""


class Tally:
    """Counts, and keeps the rows that chance has chosen so far."""

    def __init__(self, pictures: int, seed: int = 0) -> None:
        """A tally of nothing.

        Args:
            pictures: at most so many rows are chosen.
            seed: of the choice.
        """
        self.images = 0
        self.boxes = 0
        self.errors = 0
        self.without_boxes = 0
        """Sound images in which nothing was found."""
        self.histogram = np.zeros(BINS, np.int64)
        self._names: dict[int, str] = {}
        self._class_boxes: Counter[int] = Counter()
        self._class_images: Counter[int] = Counter()
        self._kinds: dict[tuple[str, str], ErrorKind] = {}
        self._pictures = pictures
        self._rng = np.random.default_rng(seed)
        self._by_chance: list[_Chosen] = []
        """Rows with the smallest numbers, as a heap with the largest first, for which numbers are negative here."""
        self._of_class: dict[int, _Chosen] = {}
        """For each class the image with the smallest number, so that rare classes are seen too."""

    @property
    def classes(self) -> list[ClassCount]:
        """The classes that were found, most boxes first."""
        return [
            ClassCount(label=label, name=self._names[label], boxes=boxes, images=self._class_images[label])
            for label, boxes in self._class_boxes.most_common()
        ]

    @property
    def kinds(self) -> list[ErrorKind]:
        """The kinds of errors, most images first."""
        return sorted(self._kinds.values(), key=lambda kind: -kind.images)

    def add(self, first: int, table: pa.Table) -> None:
        """Count the rows of a part.

        Args:
            first: number of the first row.
            table: rows as `pipelines.detect.rows` makes them.
        """
        found = table.column("detections").combine_chunks()
        owners, boxes = pc.list_parent_indices(found).to_numpy(), found.flatten()
        labels, scores = (boxes.field(name).to_numpy(zero_copy_only=False) for name in ("label", "score"))
        failed = pc.is_valid(table.column("error")).to_numpy()
        self._count(labels, scores, owners, boxes.field("name"))
        self.images += table.num_rows
        self.errors += int(failed.sum())
        self.without_boxes += table.num_rows - int(failed.sum()) - len(np.unique(owners))
        for row in np.flatnonzero(failed):
            self._add_error(table, int(row))
        priorities = np.where(failed, np.inf, self._rng.random(table.num_rows))
        self._choose(first, table, priorities)
        self._choose_of_classes(first, table, priorities[owners], owners, labels)

    def sample(self) -> list[Row]:
        """The chosen rows in the order of the manifest: up to half of them for classes that chance would leave out, the
        rarest first, the others by chance alone.
        """
        by_chance = sorted(self._by_chance, key=lambda chosen: -chosen[0])
        kept: dict[int, Row] = {}
        seen = {found["label"] for _, _, row in by_chance for found in row["detections"]}
        for entry in reversed(self.classes):
            if entry.label not in seen and len(kept) < self._pictures // 2:
                _, index, row = self._of_class[entry.label]
                kept[index] = row
        for _, index, row in by_chance:
            if len(kept) < self._pictures:
                kept[index] = row
        return [kept[index] for index in sorted(kept)]

    def _count(self, labels: np.ndarray, scores: np.ndarray, owners: np.ndarray, names: pa.Array) -> None:
        self.boxes += len(labels)
        self.histogram += np.histogram(scores, BINS, (0.0, 1.0))[0]
        present, places, counts = np.unique(labels, return_index=True, return_counts=True)
        for label, place, count in zip(present.tolist(), places.tolist(), counts.tolist(), strict=True):
            self._names.setdefault(label, names[place].as_py())
            self._class_boxes[label] += count
        pairs = np.unique(np.stack([owners, labels], axis=1), axis=0)
        self._class_images.update(pairs[:, 1].tolist())

    def _add_error(self, table: pa.Table, place: int) -> None:
        error = table.column("error")[place].as_py()
        key = (error["stage"], error["type"])
        kind = self._kinds.setdefault(key, ErrorKind(stage=key[0], type=key[1]))
        kind.images += 1
        if len(kind.examples) < EXAMPLES:
            kind.examples.append({"uri": table.column("uri")[place].as_py(), "message": error["message"]})

    def _choose(self, first: int, table: pa.Table, priorities: np.ndarray) -> None:
        full = len(self._by_chance) >= self._pictures
        largest = -self._by_chance[0][0] if self._by_chance else 0.0
        limit = largest if full else np.inf
        candidates = np.flatnonzero(priorities < limit)
        for place in candidates[np.argsort(priorities[candidates])][: self._pictures].tolist():
            heapq.heappush(self._by_chance, (-float(priorities[place]), first + place, _row(table, place)))
            if len(self._by_chance) > self._pictures:
                heapq.heappop(self._by_chance)

    def _choose_of_classes(
        self, first: int, table: pa.Table, priorities: np.ndarray, owners: np.ndarray, labels: np.ndarray
    ) -> None:
        """Per box: the priority of its image, the row of its image, its class."""
        order = np.argsort(priorities, kind="stable")
        present, places = np.unique(labels[order], return_index=True)
        for label, box in zip(present.tolist(), order[places].tolist(), strict=True):
            best, priority = self._of_class.get(label), float(priorities[box])
            if best is None or priority < best[0]:
                place = int(owners[box])
                self._of_class[label] = (priority, first + place, _row(table, place))


def _row(table: pa.Table, place: int) -> Row:
    row: Row = table.select(["uri", "height", "width", "detections"]).slice(place, 1).to_pylist()[0]
    return row
