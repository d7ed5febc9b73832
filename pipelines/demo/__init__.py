"""The main job on embedded parts: two commands, from scratch to detections."""
