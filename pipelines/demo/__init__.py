"""The main job on embedded parts: two commands, from nothing to detections."""

from pipelines.demo.config import DemoConfig
from pipelines.demo.run import DemoResult, run_demo

__all__ = ["DemoConfig", "DemoResult", "run_demo"]
