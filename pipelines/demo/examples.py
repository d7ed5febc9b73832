"""Example pictures of the report: validation images with detections, saliency and kept tokens, found by explain."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.demo.report import Example
from pipelines.explain.run import Explanation, explain_image
from sparse_detr.data.coco import read_coco
from sparse_detr.data.dataset import DetectionDataset
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.records import Targets
from sparse_detr.storage.location import locate
from sparse_detr.visualize import Picture, draw_detections, enlarge, kept_tokens_overlay, saliency_overlay

_SIDE = 480
"""Pixels of the shorter side in the report: small pictures are drawn larger, so that tokens can be told apart."""
_THRESHOLD = 0.4


def examples(model: SparseDetr, annotations: str, images: str, count: int) -> Iterator[Example]:
    """Pictures of the first images that have several objects, or of the first ones.

    Args:
        annotations, images: COCO JSON and folder, paths or URIs.
    """
    index = read_coco(annotations)
    truths = DetectionDataset(index, images, EvalTransform())
    names = (model.classes or index.classes).names
    rich = [place for place, image in enumerate(index.images) if len(image.labels) >= 3]
    for place in (rich or list(range(len(index))))[:count]:
        name = index.images[place].file_name
        picture = decode_image(locate(images).child(name).read_bytes(), name=name)
        found = explain_image(model, picture, title=name)
        yield Example(caption=name, pictures=tuple(_drawn(picture, found, names, truths[place].targets)))


def _drawn(
    picture: Picture, found: Explanation, names: tuple[str, ...], truth: Targets
) -> Iterator[tuple[str, Picture]]:
    boxes = draw_detections(picture, found.detections, names, threshold=_THRESHOLD, truth=truth, short_side=_SIDE)
    yield "detections, and the truth dashed", boxes
    report, large = found.report, enlarge(picture, _SIDE)
    if report.saliency is not None and report.kept is not None:
        yield "saliency", saliency_overlay(large, report.saliency, report.shapes)
        yield "kept tokens, finest level", kept_tokens_overlay(large, report.kept, report.shapes, level=0)
        yield "kept tokens, all levels", kept_tokens_overlay(large, report.kept, report.shapes)
