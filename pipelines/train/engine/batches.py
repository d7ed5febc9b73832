"""Annotations and images of a run -> batches for one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import DataLoader

from pipelines.recipes.config import RunConfig
from pipelines.recipes.data import DataConfig
from pipelines.train.engine.broken_images import BrokenLimit
from pipelines.train.engine.validation import ValidationImages
from sparse_detr.data.coco import CocoIndex, read_coco
from sparse_detr.data.dataset import DetectionDataset, collate
from sparse_detr.data.sampler import MicroBatchSampler
from sparse_detr.data.transforms import TrainTransform
from sparse_detr.errors import AnnotationError, require
from sparse_detr.records import Batch, Classes
from sparse_detr.storage.location import locate

LOCATIONS = ("train_annotations", "train_images", "val_annotations", "val_images")

NEIGHBOURS = 100
"""Broken images one behind the other that no run gets past, however many it allows."""


class TrainBatches(Protocol):
    """The micro-batches of one rank, step by step, in an order that follows from seed and epoch."""

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and the step of it that it begins with."""

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        """This rank's micro-batches of each step."""

    def __len__(self) -> int:
        """Steps of a whole epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Data that one rank trains on, and that all are evaluated with."""

    train: TrainBatches
    val: ValidationImages
    classes: Classes
    broken: BrokenLimit = field(default_factory=BrokenLimit)
    """Training images that may be broken."""


class _Loader:
    def __init__(self, loader: DataLoader[Any], sampler: MicroBatchSampler) -> None:
        self._loader = loader
        self._sampler = sampler

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        self._sampler.set_epoch(epoch, first_step)

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        batches = iter(self._loader)
        while step := tuple(islice(batches, self._sampler.micro_batches)):
            yield step

    def __len__(self) -> int:
        return self._sampler.steps


def read_annotations(data: DataConfig) -> tuple[CocoIndex, CocoIndex]:
    """The training and the validation annotations, with the same classes.

    Raises:
        ConfigError: a location is not set.
        AnnotationError: a file is not what it claims to be, or the two declare different classes.
    """
    require_locations(data)
    train, val = read_coco(data.train_annotations), read_coco(data.val_annotations)
    if data.train_limit is not None:
        train = _first_images(train, data.train_limit)
    if train.classes != val.classes:
        raise AnnotationError(
            f"{data.val_annotations}: classes {val.classes.names} are not those of {data.train_annotations}, "
            f"{train.classes.names}; declare the same categories, in the same order, in both"
        )
    return train, val


def require_locations(data: DataConfig) -> None:
    for name in LOCATIONS:
        require(bool(getattr(data, name)), f"data.{name}: not set; give a path or s3:// URI")


def _first_images(index: CocoIndex, limit: int) -> CocoIndex:
    images = index.images[:limit]
    names = {image.file_name for image in images}
    return replace(index, images=images, dropped=tuple(box for box in index.dropped if box.file_name in names))


def load_data(config: RunConfig, *, rank: int = 0, world_size: int = 1) -> RunData:
    """The micro-batches of one rank, and the validation images."""
    train, val = read_annotations(config.data)
    return data_of(config, train, val, rank=rank, world_size=world_size)


def data_of(config: RunConfig, train: CocoIndex, val: CocoIndex, *, rank: int = 0, world_size: int = 1) -> RunData:
    """The same of annotations that were read before."""
    data, training = config.data, config.training
    limit = BrokenLimit.of(data, len(train.images))
    train_set = DetectionDataset(
        train,
        data.train_images,
        TrainTransform(config=data.augment),
        cache=data.cache,
        # More than may be broken, so that it is the loop that ends the run: on all ranks, at the same step.
        stand_ins=limit.images + NEIGHBOURS,
    )
    sampler = MicroBatchSampler(
        len(train_set),
        global_batch=training.global_batch,
        micro_batch=training.images_per_micro_batch,
        rank=rank,
        world_size=world_size,
        seed=training.seed,
    )
    loader = DataLoader(train_set, batch_sampler=sampler, collate_fn=collate, num_workers=data.loader_workers)
    return RunData(
        train=_Loader(loader, sampler),
        val=ValidationImages(index=val, root=locate(data.val_images), size=data.image_size),
        classes=train.classes,
        broken=limit,
    )
