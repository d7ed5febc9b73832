"""Uploads of the demo: the shapes data set, and an image collection with some images broken on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.demo.config import DemoConfig
from sparse_detr.data.shapes import ShapesConfig, generate_shapes, write_shapes
from sparse_detr.storage.location import Location, locate

IMAGE_SIZE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """URIs of what was uploaded."""

    train_annotations: str
    train_images: str
    val_annotations: str
    val_images: str
    collection: str
    """Images without annotations."""
    broken: tuple[str, ...]
    """Names of those that are broken on purpose."""


def upload(store: Location, config: DemoConfig, on_progress: Callable[[int, int], None]) -> DemoData:
    """Generate everything and write it to the store."""
    shapes = ShapesConfig(images=config.images, size=IMAGE_SIZE, seed=config.seed)
    splits = {"train": config.images, "val": config.validation, "collection": config.collection}
    folder = store.child("shapes")
    uris = write_shapes(folder, shapes, splits, on_progress)
    collection = locate(uris["collection"].images)
    broken = dict(broken_images(shapes))
    for name, data in broken.items():
        collection.child(name).write_bytes(data)
    return DemoData(
        train_annotations=uris["train"].annotations,
        train_images=uris["train"].images,
        val_annotations=uris["val"].annotations,
        val_images=uris["val"].images,
        collection=uris["collection"].images,
        broken=tuple(broken),
    )


def broken_images(shapes: ShapesConfig) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of files that look like images and are none."""
    _, whole, _ = next(generate_shapes(shapes))
    yield "broken-empty.jpg", b""
    yield "broken-truncated.jpg", whole[: len(whole) // 2]
    yield "broken-text.jpg", b"This is a text file that somebody gave the name of an image.\n"
    yield "broken-zeros.png", bytes(4096)
    yield "broken-header-only.jpg", whole[:20]
    yield "broken-html.jpeg", b"<!doctype html><title>404</title><p>What a crawler saved in place of a picture.</p>"
