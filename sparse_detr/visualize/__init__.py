"""Boxes, saliency, kept tokens and attention drawn on images. All pictures are uint8 RGB arrays of shape [H, W, 3]."""

from sparse_detr.visualize.detections import draw_detections
from sparse_detr.visualize.explanation import TokenReport, draw_explanation
from sparse_detr.visualize.panel import panel
from sparse_detr.visualize.style import Picture, class_colour, enlarge
from sparse_detr.visualize.tokens import agreement_overlay, kept_tokens_overlay, saliency_overlay

__all__ = [
    "Picture",
    "TokenReport",
    "agreement_overlay",
    "class_colour",
    "draw_detections",
    "draw_explanation",
    "enlarge",
    "kept_tokens_overlay",
    "panel",
    "saliency_overlay",
]
