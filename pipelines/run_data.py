"""Annotations and images of a run -> batches for one rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch.utils.data import DataLoader

from pipelines.config import DataConfig, RunConfig
from sparse_detr.data.coco import CocoIndex, read_coco, verify_images
from sparse_detr.data.dataset import DetectionDataset, collate
from sparse_detr.data.sampler import EpochSampler
from sparse_detr.data.transforms import EvalTransform, TrainTransform
from sparse_detr.download import check_address
from sparse_detr.errors import AnnotationError, require
from sparse_detr.records import Batch, Classes
from sparse_detr.storage import check_access, locate

_LOCATIONS = ("train_annotations", "train_images", "val_annotations", "val_images")


class TrainBatches(Protocol):
    """The training batches of one rank, in an order that follows from seed and epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What one rank trains on, and is judged by."""

    train: TrainBatches
    val: Iterable[Batch]
    """This rank's share of the held-out images."""
    ground_truth: dict[str, Any]
    """All held-out annotations in COCO's form."""
    classes: Classes


class _Loader:
    def __init__(self, loader: DataLoader[Any], sampler: EpochSampler) -> None:
        self._loader = loader
        self._sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        self._sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedData:
    """What `check_data` found."""

    classes: Classes
    train_images: int
    """Training images that will be used."""
    val_images: int
    """Held-out images."""
    dropped: tuple[str, ...] = ()
    """Bad boxes of these images: each with its file and the reason why it was left out."""


def read_annotations(data: DataConfig) -> tuple[CocoIndex, CocoIndex]:
    """The training and the held-out annotations, with the same classes.

    Raises:
        ConfigError: a location is not set.
        AnnotationError: a file is not what it claims to be, or the two declare different classes.
    """
    _require_locations(data)
    train, val = read_coco(data.train_annotations), read_coco(data.val_annotations)
    if data.train_limit is not None:
        train = _first_images(train, data.train_limit)
    if train.classes != val.classes:
        raise AnnotationError(
            f"{data.val_annotations}: classes {val.classes.names} are not those of {data.train_annotations}, "
            f"{train.classes.names}; declare the same categories, in the same order, in both"
        )
    return train, val


def _require_locations(data: DataConfig) -> None:
    for name in _LOCATIONS:
        require(bool(getattr(data, name)), f"data.{name}: not set; give a path or s3:// URI")


def _first_images(index: CocoIndex, limit: int) -> CocoIndex:
    images = index.images[:limit]
    names = {image.file_name for image in images}
    return replace(index, images=images, dropped=tuple(box for box in index.dropped if box.file_name in names))


def check_data(config: RunConfig) -> CheckedData:
    """Read the annotations and look for every image, before any worker starts.

    A store that refuses or says nothing is an error within 15 seconds.

    Raises:
        ConfigError, AnnotationError, StorageError: what is wrong with them.
    """
    data, training = config.data, config.training
    _require_locations(data)
    for uri in (*(getattr(data, name) for name in _LOCATIONS), training.init_model):
        if uri is not None:
            check_access(locate(uri))
    if training.init_backbone is not None:
        check_address(training.init_backbone)
    train, val = read_annotations(data)
    verify_images(train, data.train_images)
    verify_images(val, data.val_images)
    require(
        len(train.images) >= training.global_batch,
        f"training.global_batch: {training.global_batch} is more than the {len(train.images)} training "
        "images; give at most that",
    )
    return CheckedData(
        classes=train.classes,
        train_images=len(train.images),
        val_images=len(val.images),
        dropped=tuple(f"{index.source}: {box}" for index in (train, val) for box in index.dropped),
    )


def load_data(config: RunConfig, *, rank: int = 0, world_size: int = 1) -> RunData:
    """The batches of one rank: the training images shuffled and sharded, every `world_size`th held-out image."""
    train, val = read_annotations(config.data)
    data = config.data
    cache = {"cache_bytes": data.cache == "bytes", "cache_pixels": data.cache == "pixels"}
    train_set = DetectionDataset(train, data.train_images, TrainTransform(config=data.augment), **cache)
    evaluation = EvalTransform(short_side=data.short_side, max_side=data.max_side)
    val_set = DetectionDataset(val, data.val_images, evaluation, **cache)
    sampler = EpochSampler(len(train_set), rank=rank, world_size=world_size, seed=config.training.seed)
    sizes: dict[str, Any] = {"batch_size": config.training.batch_per_worker, "num_workers": data.loader_workers}
    loader = DataLoader(train_set, sampler=sampler, drop_last=True, collate_fn=collate, **sizes)
    share = range(rank, len(val_set), world_size)
    val_loader = DataLoader(val_set, sampler=share, collate_fn=collate, **sizes)
    return RunData(
        train=_Loader(loader, sampler), val=val_loader, ground_truth=val.ground_truth(), classes=train.classes
    )
