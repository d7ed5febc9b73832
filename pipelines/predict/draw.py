"""A look at a few images: their boxes drawn on them, in this process, without a cluster."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import torch
from PIL import Image

from pipelines.detect.images import ImageFailure, ImageResult
from pipelines.detect.load import load_checked
from pipelines.detect.manifest import places
from pipelines.detect.predictor import Predictor
from pipelines.predict.config import PredictConfig
from pipelines.predict.inference import chosen_images, predictor_factory, reachable
from sparse_detr.data.decode import decode_image
from sparse_detr.errors import ConfigError, require
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import Location, locate
from sparse_detr.storage.output import Replace, claim_folder
from sparse_detr.visualize import draw_detections

MOST = 200
"""Images of a look: a minute or two on one core at 800 pixels. Beyond, a run does it better."""
_TOGETHER = 16
"""Images that are detected before the first of them is drawn: enough that batches fill."""

Pair = tuple[Location, Location]
"""An image and its picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage:
    """An image of a look: a picture with its boxes, or the reason why there is none."""

    uri: str
    picture: str | None
    """URI of the picture; None for a broken image."""
    boxes: int = 0
    best: tuple[str, float] | None = None
    """Class and score of the best box; None without boxes."""
    failure: ImageFailure | None = None


def draw(config: PredictConfig, *, on_progress: Callable[[int, int], None] | None = None) -> tuple[DrawnImage, ...]:
    """Detect objects in a few images and write a PNG of each, with its boxes, below `config.draw`.

    Args:
        config: with `draw`.
        on_progress: called with (images done, images in all).

    Raises:
        ConfigError: more than MOST images, pictures that would replace images, or settings that the model cannot serve.
        OutputExistsError: pictures of these names are there and `existing` is not `overwrite`.
        CheckpointError, StorageError: model, images or folder cannot be used.
    """
    require(config.draw is not None, "draw: it is not given; name a folder for the pictures")
    folder = locate(str(config.draw))
    config = reachable(config)
    pairs = _planned(config, folder)
    predictor = _predictor(config)
    found: list[DrawnImage] = []
    for start in range(0, len(pairs), _TOGETHER):
        found += _draw_some(predictor, config.score_threshold, pairs[start : start + _TOGETHER])
        if on_progress is not None:
            on_progress(len(found), len(pairs))
    return tuple(found)


def picture_names(keys: Sequence[str]) -> list[str]:
    """Names of the pictures of images with these relative paths, in folders as theirs, no two the same.

    The extension is replaced, unless two images differ in nothing else: then all keep it, `a.jpg.png`.
    """
    bare = [str(PurePosixPath(key).with_suffix(".png")) for key in keys]
    return bare if len(set(bare)) == len(bare) else [f"{key}.png" for key in keys]


def _planned(config: PredictConfig, folder: Location) -> list[Pair]:
    manifest = chosen_images(config)
    if len(manifest) > MOST:
        raise ConfigError(
            f"draw: {len(manifest)} images are more than the {MOST} that it draws; add --limit {MOST} or --sample "
            f"{MOST}, or make it a run with an output in place of draw, which `sparse-detr view` then shows"
        )
    place = places(manifest.root)
    # A list of the user's own may name an image twice.
    images = {location.uri: location for location in map(place, manifest.table.column("key").to_pylist())}
    if folder.uri.startswith(f"{manifest.root.rstrip('/')}/"):
        # Pictures of an earlier look, in a folder among the images, are none of the images.
        images = {uri: location for uri, location in images.items() if not uri.startswith(f"{folder.uri}/")}
    names = picture_names(_relative(list(images), manifest.root))
    _require_free(config, folder, names, set(images))
    return list(zip(images.values(), (folder.child(name) for name in names), strict=True))


def _relative(uris: Sequence[str], root: str) -> list[str]:
    """Their paths below the root, or without one below the folder that all are in."""
    paths = [uri.split("/") for uri in uris]
    if root:
        shared = len(root.rstrip("/").split("/"))
    else:
        levels = enumerate(zip(*(path[:-1] for path in paths), strict=False))
        shared = next((i for i, names in levels if len(set(names)) > 1), min(len(path) - 1 for path in paths))
    return ["/".join(path[shared:]).lstrip("/") for path in paths]


def _require_free(config: PredictConfig, folder: Location, names: Sequence[str], images: set[str]) -> None:
    """Nothing is replaced without leave, and an image never."""
    same = images & {folder.child(name).uri for name in names}
    if same:
        raise ConfigError(f"draw: {min(same)} would replace the image itself; choose another folder")
    # A picture is no run to go on with, so `resume`, the default of a run, refuses too.
    existing: Replace = "overwrite" if config.existing == "overwrite" else "refuse"
    claim_folder(folder, existing, tuple(names), field="draw", holds=lambda: "pictures of these names")
    check_access(folder, writable=True)


def _predictor(config: PredictConfig) -> Predictor:
    gpu = torch.cuda.is_available()
    require(gpu or config.device != "gpu", "device: 'gpu', but torch finds none here; choose auto or cpu")
    model = load_checked(config, [config.keep_ratio])
    factory = predictor_factory(config)
    return factory(model, "cuda" if gpu and config.device != "cpu" else "cpu")


def _draw_some(predictor: Predictor, threshold: float, pairs: Sequence[Pair]) -> Iterator[DrawnImage]:
    results = predictor([image.uri for image, _ in pairs])
    for (image, picture), result in zip(pairs, results, strict=True):
        if result.detections is None:
            yield DrawnImage(uri=image.uri, picture=None, failure=result.failure)
        else:
            yield _draw_one(image, picture, result, _names(predictor), threshold)


def _names(predictor: Predictor) -> Sequence[str]:
    classes, count = predictor.model.classes, predictor.model.config.num_classes
    return [str(label) for label in range(count)] if classes is None else classes.names


def _draw_one(
    image: Location, picture: Location, result: ImageResult, names: Sequence[str], threshold: float
) -> DrawnImage:
    detections = result.detections
    assert detections is not None
    # Read again: pixels of all images at once could be gigabytes.
    pixels = decode_image(image.read_bytes(), name=image.uri)
    buffer = io.BytesIO()
    Image.fromarray(draw_detections(pixels, detections, names, threshold=threshold)).save(buffer, "PNG")
    picture.write_bytes(buffer.getvalue())
    boxes = len(detections.scores)
    best = (names[int(detections.labels[0])], float(detections.scores[0])) if boxes else None
    return DrawnImage(uri=image.uri, picture=picture.uri, boxes=boxes, best=best)
