"""One picture of what a model sees in one image: `sparse-detr explain`, and the pictures of a training."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipelines.explain.config import ExplainConfig
from pipelines.tracking.model_uri import model_folder
from sparse_detr.data.decode import decode_image
from sparse_detr.data.transforms import EvalTransform
from sparse_detr.detector import SparseDetr
from sparse_detr.errors import ImageError, StorageError
from sparse_detr.evaluation.mode import evaluating
from sparse_detr.evaluation.postprocess import postprocess
from sparse_detr.records import COCO_IMAGE_SIZE, Detections, ImageBatch, ImageSize, Targets
from sparse_detr.storage.access import check_access
from sparse_detr.storage.location import locate
from sparse_detr.storage.output import checked_file
from sparse_detr.visualize import Picture, TokenReport, draw_explanation
from sparse_detr.visualize.explanation import NO_ATTENTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A picture, and what it shows in numbers."""

    picture: Picture
    report: TokenReport
    detections: Detections
    """All, also those below the threshold; in pixels of the image."""

    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.picture).save(buffer, "PNG")
        return buffer.getvalue()

    def summary(self, threshold: float) -> dict[str, object]:
        """Detections, kept tokens of all, and the share of the decoder's attention on kept tokens."""
        report = self.report
        kept = "all" if report.kept is None else len(report.kept)
        rows: dict[str, object] = {
            f"objects of {threshold:g} and more": int((self.detections.scores >= threshold).sum()),
            "kept tokens": f"{kept} of {report.tokens}",
        }
        if report.shares is not None:
            counts = () if report.kept is None else report.on_levels(report.kept)
            rows["attention on kept tokens"] = _share(report.shares[0])
            for level, (share, count, (height, width)) in enumerate(
                zip(report.shares[1:], counts, report.shapes, strict=True)
            ):
                rows[f"  level {level}"] = f"{_share(share)}  ({count} of {height * width} kept)"
        return rows


def _share(share: float) -> str:
    return NO_ATTENTION if math.isnan(share) else f"{share:.4g}"


def explain_image(
    model: SparseDetr,
    image: Picture,
    *,
    title: str,
    size: ImageSize | None = None,
    keep_ratio: float | None = None,
    threshold: float = 0.4,
    truth: Targets | None = None,
    tile: int = 250,
) -> Explanation:
    """Run the model on one image, on the device where it is, and draw what it did; its mode stays as it was.

    Args:
        image: uint8 RGB, as it was decoded.
        title: first line of the picture.
        size: what the image is resized to; by default the model's own, or the authors' for COCO.
        truth: the true objects, drawn dashed.
        tile: side of the small pictures in pixels, see `draw_explanation`.

    Raises:
        ConfigError: the model cannot run at this keep ratio.
        ImageError: it gives numbers that are not finite.
    """
    size = size or model.image_size or COCO_IMAGE_SIZE
    transform = EvalTransform(size=size)
    pixels, _ = transform(image, np.zeros((0, 4)), np.zeros(0, np.int64))
    device = next(model.parameters()).device
    with evaluating(model):
        output = model(ImageBatch.from_list([pixels]).to(device), keep_ratio, with_auxiliary=True)
    if not bool(torch.isfinite(output.logits).all() and torch.isfinite(output.boxes).all()):
        raise ImageError(f"{title}: the model's output is not finite; check its weights")
    (found,) = postprocess(output, [(image.shape[0], image.shape[1])])
    detections = Detections(scores=found.scores.cpu(), labels=found.labels.cpu(), boxes=found.boxes.cpu())
    names = model.classes.names if model.classes else [str(label) for label in range(model.config.num_classes)]
    report = TokenReport.of(output)
    picture = draw_explanation(
        image, report, detections, names, title=title, threshold=threshold, truth=truth, tile=tile
    )
    return Explanation(picture=picture, report=report, detections=detections)


def explain(config: ExplainConfig) -> Explanation:
    """Explain one image and write the picture.

    Raises:
        ImageError: the file is no image.
        OutputExistsError: there is a file at `output` already and `existing` is `refuse`, or a folder.
        CheckpointError, ConfigError, StorageError: model, keep ratio, image or output cannot be used.
    """
    source, folder = locate(config.image), locate(model_folder(config.model))
    output = checked_file(config.output, config.existing, inputs={"image": config.image, "model": folder.uri})
    for location in (source, folder):
        check_access(location)
    if not source.exists() or source.is_dir():
        raise StorageError(f"image: {source.uri} is {'a folder' if source.exists() else 'not there'}; name one file")
    image = decode_image(source.read_bytes(), name=source.uri)
    model = SparseDetr.from_pretrained(folder.uri)
    size = (model.image_size or COCO_IMAGE_SIZE).with_sides(config.short_side, config.max_side)
    ratio = model.config.keep_ratio if config.keep_ratio is None else config.keep_ratio
    name = source.uri.rpartition("/")[2]
    title = f"{name}   {image.shape[1]} x {image.shape[0]}, keep ratio {ratio:g}"
    found = explain_image(
        model, image, title=title, size=size, keep_ratio=config.keep_ratio, threshold=config.threshold
    )
    output.write_bytes(found.png())
    return found
