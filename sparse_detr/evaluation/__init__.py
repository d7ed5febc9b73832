"""From network output to detections and to COCO average precision."""
