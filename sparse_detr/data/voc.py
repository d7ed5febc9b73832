"""Pascal VOC XML annotations to COCO form."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image, UnidentifiedImageError

from sparse_detr.data.coco_index import DroppedBox
from sparse_detr.errors import AnnotationError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def import_voc(root: Path, split: str) -> tuple[dict[str, Any], tuple[DroppedBox, ...]]:
    """Read one split of a data set in the layout of Pascal VOC.

    VOC counts pixels from 1 and includes the last one, so (xmin, ymin, xmax, ymax) becomes the xyxy box
    (xmin - 1, ymin - 1, xmax, ymax). Categories are the names in all of `Annotations/`, sorted, with ids from 1: the
    same for every split. Objects marked difficult become crowd regions, which evaluation ignores as VOC's does.

    Args:
        root: holds `ImageSets/Main/<split>.txt`, `Annotations/*.xml` and `JPEGImages/`.
        split: as in train, val, test.

    Returns:
        The annotations in COCO form (file names relative to `JPEGImages`), and the boxes without area or not finite,
        which are not among them.

    Raises:
        AnnotationError: a file or an element is missing or not what it should be; the message names the file.
    """
    stems = _split_stems(root, split)
    names = _class_names(root)
    ids = {name: category for category, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    dropped: list[DroppedBox] = []
    number = 0
    for stem in stems:
        path = root / "Annotations" / f"{stem}.xml"
        tree = _parsed(path)
        image = _image(root, path, tree, image_id=len(images) + 1)
        images.append(image)
        for item in tree.findall("object"):
            number += 1
            corners = _corners(item, path)
            reason = _useless(corners)
            if reason:
                dropped.append(
                    DroppedBox(file_name=image["file_name"], annotation_id=number, box=corners, reason=reason)
                )
            else:
                annotations.append(_annotation(item, path, corners, image["id"], number, ids))
    categories = [{"id": ids[name], "name": name} for name in names]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, tuple(dropped)


def voc_images(root: Path) -> Path:
    """The folder that the file names of `import_voc` are relative to."""
    return root / "JPEGImages"


def _split_stems(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Main"
    path = folder / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise AnnotationError(f"{path}: no such split; there are: {known}")
    stems = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if not stems:
        raise AnnotationError(f"{path}: names no image; give one name a line")
    if len(set(stems)) != len(stems):
        twice = next(stem for place, stem in enumerate(stems) if stem in stems[:place])
        raise AnnotationError(f"{path}: {twice!r} is there twice; names must differ")
    return stems


def _class_names(root: Path) -> tuple[str, ...]:
    paths = sorted((root / "Annotations").glob("*.xml"))
    return tuple(sorted({_text(item, "name", path) for path in paths for item in _parsed(path).findall("object")}))


def _parsed(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except FileNotFoundError as error:
        raise AnnotationError(f"{path}: no such file; the split names it") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path}: not XML ({error}); give a Pascal VOC annotation") from error


def _image(root: Path, path: Path, tree: ElementTree.Element, *, image_id: int) -> dict[str, Any]:
    stated = Path(tree.findtext("filename") or "").name
    candidates = [name for name in (stated, *(path.stem + suffix for suffix in _SUFFIXES)) if name]
    found = next((name for name in candidates if (voc_images(root) / name).is_file()), None)
    if found is None:
        raise AnnotationError(f"{path}: its image is not in {voc_images(root)}; looked for {', '.join(candidates)}")
    width, height = _size(path, tree, voc_images(root) / found)
    return {"id": image_id, "file_name": found, "height": height, "width": width}


def _size(path: Path, tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """(width, height) as stated; from the image's header where the XML has none or zeros, as some tools write."""
    stated = [tree.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    try:
        width, height = (int(text) for text in stated)
    except ValueError as error:
        raise AnnotationError(f"{path}: size is {stated}; width and height must be integers") from error
    if width > 0 and height > 0:
        return width, height
    try:
        with Image.open(io.BytesIO(image.read_bytes())) as opened:
            return opened.size
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise AnnotationError(f"{path}: has no size, and {image} is no image that has one; add the size") from error


def _corners(item: ElementTree.Element, path: Path) -> tuple[float, ...]:
    texts = [_text(item, f"bndbox/{key}", path) for key in _CORNERS]
    try:
        return tuple(float(text) for text in texts)
    except ValueError as error:
        raise AnnotationError(f"{path}: bndbox is {texts}; xmin, ymin, xmax, ymax must be numbers") from error


def _useless(corners: tuple[float, ...]) -> str | None:
    if not all(math.isfinite(value) for value in corners):
        return "is not finite"
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return "has no area: xmax and ymax must be above xmin and ymin"
    return None


def _annotation(
    item: ElementTree.Element, path: Path, corners: tuple[float, ...], image_id: int, number: int, ids: dict[str, int]
) -> dict[str, Any]:
    x, y, width, height = corners[0] - 1, corners[1] - 1, corners[2] - corners[0] + 1, corners[3] - corners[1] + 1
    return {
        "id": number,
        "image_id": image_id,
        "category_id": ids[_text(item, "name", path)],
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int((item.findtext("difficult") or "0").strip() == "1"),
    }


def _text(item: ElementTree.Element, key: str, path: Path) -> str:
    text = (item.findtext(key) or "").strip()
    if not text:
        raise AnnotationError(f"{path}: an object has no {key}; add it or remove the object")
    return text
