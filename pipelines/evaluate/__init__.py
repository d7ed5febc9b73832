"""COCO's numbers of a model on annotated images, at one keep ratio or several."""
