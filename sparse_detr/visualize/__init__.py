"""Boxes, saliency and kept tokens drawn on images. All pictures are uint8 RGB arrays of shape [H, W, 3]."""

from sparse_detr.visualize.detections import draw_detections
from sparse_detr.visualize.panel import panel
from sparse_detr.visualize.style import Picture, class_colour, enlarge
from sparse_detr.visualize.tokens import kept_tokens_overlay, saliency_overlay

__all__ = [
    "Picture",
    "class_colour",
    "draw_detections",
    "enlarge",
    "kept_tokens_overlay",
    "panel",
    "saliency_overlay",
]
