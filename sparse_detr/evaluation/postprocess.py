"""From logits and relative boxes to detections in pixels (algorithm of DETR's post-processing, top k over classes)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparse_detr.boxes import cxcywh_to_xyxy
from sparse_detr.records import Detections, Output


@torch.no_grad()
def postprocess(output: Output, original_sizes: Sequence[tuple[int, int]], limit: int = 100) -> list[Detections]:
    """The `limit` best (query, class) pairs of every image, best first.

    A query can be found more than once, with different classes. No suppression and no clamping to the image.

    Args:
        output: boxes relative to each image without its padding.
        original_sizes: (height, width) in pixels of every image before any resizing.
        limit: most detections for an image; fewer where queries x classes are fewer.

    Raises:
        ValueError: not one size for each image, or a limit below 1.
    """
    if len(original_sizes) != len(output.logits):
        raise ValueError(f"original_sizes: {len(original_sizes)} sizes for {len(output.logits)} images; give one each")
    if limit < 1:
        raise ValueError(f"limit: {limit}; give at least 1")
    classes = output.logits.shape[2]
    # float32: in bfloat16 scores above 0.5 come in steps of 1/256, and ties would decide the order.
    best = output.logits.float().sigmoid().flatten(1)
    scores, pairs = best.topk(min(limit, best.shape[1]), dim=1)
    boxes = cxcywh_to_xyxy(output.boxes.float())
    found = boxes.gather(1, (pairs // classes)[..., None].expand(-1, -1, 4))
    scale = found.new_tensor([(w, h, w, h) for h, w in original_sizes])
    labels = pairs % classes
    return [
        Detections(scores=s, labels=n, boxes=b) for s, n, b in zip(scores, labels, found * scale[:, None], strict=True)
    ]
