"""All that a step needs to be run again, kept as a folder when its numbers were not finite. Nothing in it can run.

    step_000123/
      micro_batch_0000.safetensors   pixels, padding, targets; `terms`, the losses that it gave, to the last bit
      model.safetensors              the weights before the step
      record.json                    config, step, seed, what broke; written last

A step follows from (config, seed, step), its weights and its images. So nothing is copied while all is well: the images
are those that the loop has just used, and the weights are those that the model still has, since an update that is not
finite is left out.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.ranks import Ranks
from sparse_detr.config_dict import from_dict, to_dict
from sparse_detr.errors import CheckpointError, StorageError
from sparse_detr.records import Batch, ImageBatch, Targets
from sparse_detr.redaction import values_without_secrets
from sparse_detr.storage.location import Location, locate

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "not_finite"
"""Below the output of the run; a folder a step in it."""
RECORD, WEIGHTS = "record.json", "model.safetensors"

_NUMBERS = {"step": (0, 2**31), "epoch": (0, 2**31), "threads": (1, 1025)}
"""Whole numbers of the record with which a step can run: the first, and the first that is too large. A process cannot
start threads without end, and ends when it tries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvidence:
    """One step as one rank ran it."""

    step: int
    """From 0, over the whole run."""
    epoch: int
    """From 0."""
    boxes: float
    """Objects of the whole step, over all ranks."""
    micro_batches: Mapping[int, Batch]
    """By number: those of the rank, on the host."""
    terms: Sequence[Mapping[str, Tensor]]
    """Their loss terms, in the same order."""


class EvidenceStore:
    """Keeps steps of a run in its output."""

    def __init__(self, config: RunConfig, model: nn.Module, ranks: Ranks, device: torch.device) -> None:
        self._config, self._model, self._ranks, self._device = config, model, ranks, device

    def keep(self, evidence: StepEvidence, why: str) -> str:
        """Write a step; every rank must call it. Gives a sentence about where it is, or why it could not be kept."""
        folder = locate(self._config.output).child(FOLDER, f"step_{evidence.step:06d}")
        problem = self._tried(lambda: self._write_micro_batches(folder, evidence))
        if not self._ranks.sum([problem != ""])[0] and self._ranks.rank == 0:
            problem = self._tried(lambda: self._write_record(folder, evidence, why))
        # Also keeps the others from ending the run while rank 0 still writes.
        problems = [found for found in self._ranks.gather_objects(problem) if found]
        if problems:
            return f"the step could not be kept ({problems[0]})"
        return f"the step is kept: sparse-detr train --replay {folder.uri}"

    @staticmethod
    def _tried(write: Callable[[], None]) -> str:
        try:
            write()
        except StorageError as error:
            return str(error)
        return ""

    def _write_micro_batches(self, folder: Location, evidence: StepEvidence) -> None:
        for (number, batch), terms in zip(evidence.micro_batches.items(), evidence.terms, strict=True):
            values = torch.stack([value.detach().float() for value in terms.values()])
            tensors = {"terms": values.cpu(), **_flat(batch)}
            folder.child(_name(number)).write_bytes(safetensors.torch.save(tensors, {"names": " ".join(terms)}))

    def _write_record(self, folder: Location, evidence: StepEvidence, why: str) -> None:
        weights = {name: value.detach().cpu().contiguous() for name, value in self._model.state_dict().items()}
        folder.child(WEIGHTS).write_bytes(safetensors.torch.save(weights))
        record = {
            "format": FORMAT,
            "why": why,
            "step": evidence.step,
            "epoch": evidence.epoch,
            "boxes": evidence.boxes,
            "seed": self._config.training.seed,
            "workers": self._ranks.world_size,
            "device": self._device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "config": values_without_secrets(to_dict(self._config)),
        }
        folder.child(RECORD).write_bytes(json.dumps(record, indent=1).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptMicroBatch:
    """One micro-batch of a kept step."""

    number: int
    batch: Batch
    terms: Mapping[str, Tensor]
    """The losses that it gave, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptStep:
    """A step as it was kept."""

    config: RunConfig
    why: str
    step: int
    epoch: int
    boxes: float
    device: str
    threads: int
    torch_version: str
    weights: Mapping[str, Tensor]
    micro_batches: tuple[KeptMicroBatch, ...]


def read_step(uri: str) -> KeptStep:
    """The step of a folder, or of its `record.json`.

    Raises:
        CheckpointError: it is not what a training keeps, or not whole.
        StorageError: it cannot be read.
    """
    place = locate(uri)
    folder = place.parent() if place.path.endswith(RECORD) else place
    if not folder.child(RECORD).exists():
        raise CheckpointError(f"replay: {folder.uri} has no {RECORD}; give a folder not_finite/step_... of a training")
    try:
        record = json.loads(folder.child(RECORD).read_bytes())
        if record["format"] != FORMAT:
            raise CheckpointError(f"replay: {folder.uri} has format {record['format']!r}; this version reads {FORMAT}")
        _require_numbers(record)
        config = from_dict(RunConfig, record["config"])
        numbers = range(config.training.micro_batches)
        return KeptStep(
            config=config,
            why=record["why"],
            step=record["step"],
            epoch=record["epoch"],
            boxes=record["boxes"],
            device=record["device"],
            threads=record["threads"],
            torch_version=record["torch"],
            weights=safetensors.torch.load(folder.child(WEIGHTS).read_bytes()),
            micro_batches=tuple(_micro_batch(folder, number, config.model.num_classes) for number in numbers),
        )
    except (ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        if isinstance(error, (CheckpointError, StorageError)):
            raise
        raise CheckpointError(
            f"replay: {folder.uri} is not what a training keeps ({type(error).__name__}: {error}); give another"
        ) from error


def _name(number: int) -> str:
    return f"micro_batch_{number:04d}.safetensors"


def _require_numbers(record: Mapping[str, Any]) -> None:
    for name, (first, end) in _NUMBERS.items():
        value = record[name]
        if type(value) is not int or not first <= value < end:
            raise ValueError(f"{name}: {value!r}, wanted a whole number from {first} to {end - 1}")
    boxes = record["boxes"]
    if type(boxes) not in (int, float) or not 0 <= boxes < math.inf:
        raise ValueError(f"boxes: {boxes!r}, wanted a number of objects")


def _require_batch(tensors: Mapping[str, Tensor], terms: int, classes: int) -> None:
    """Refuse tensors that do not fit together, or have labels that the model does not know."""
    images, _, height, width = tensors["pixels"].shape
    objects = len(tensors["labels"])
    wanted = {
        "pixels": (torch.float32, (images, 3, height, width)),
        "padding": (torch.bool, (images, height, width)),
        "counts": (torch.int64, (images,)),
        "labels": (torch.int64, (objects,)),
        "boxes": (torch.float32, (objects, 4)),
        "image_ids": (torch.int64, (images,)),
        "original_sizes": (torch.int64, (images, 2)),
        "terms": (torch.float32, (terms,)),
    }
    for name, (kind, shape) in wanted.items():
        found = tensors[name]
        if found.dtype != kind or found.shape != shape or (name == "pixels" and not found.numel()):
            raise ValueError(f"{name}: {found.dtype} {tuple(found.shape)}, wanted {kind} {shape}")
    counts = tensors["counts"].tolist()
    if min(counts) < 0 or sum(counts) != objects:
        raise ValueError(f"counts: {counts}, of {objects} labels")
    strange = [label for label in tensors["labels"].tolist() if not 0 <= label < classes]
    if strange:
        raise ValueError(f"labels: {strange[0]}, the model knows {classes} classes")


def _micro_batch(folder: Location, number: int, classes: int) -> KeptMicroBatch:
    content = folder.child(_name(number)).read_bytes()
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    names = header["__metadata__"]["names"].split()
    _require_batch(tensors, len(names), classes)
    counts = tensors["counts"].tolist()
    targets = zip(*(torch.split(tensors[name], counts) for name in ("labels", "boxes")), strict=True)
    batch = Batch(
        images=ImageBatch(pixels=tensors["pixels"], padding=tensors["padding"]),
        targets=tuple(Targets(labels=labels, boxes=boxes) for labels, boxes in targets),
        image_ids=tuple(tensors["image_ids"].tolist()),
        original_sizes=tuple((int(height), int(width)) for height, width in tensors["original_sizes"].tolist()),
    )
    return KeptMicroBatch(number=number, batch=batch, terms=dict(zip(names, tensors["terms"], strict=True)))


def _flat(batch: Batch) -> dict[str, Tensor]:
    return {
        "pixels": batch.images.pixels.contiguous(),
        "padding": batch.images.padding.contiguous(),
        "counts": torch.tensor([len(target.labels) for target in batch.targets]),
        "labels": torch.cat([target.labels for target in batch.targets]),
        "boxes": torch.cat([target.boxes for target in batch.targets]),
        "image_ids": torch.tensor(batch.image_ids),
        "original_sizes": torch.tensor(batch.original_sizes),
    }
