"""The main job on embedded parts: two commands, from nothing to detections."""
