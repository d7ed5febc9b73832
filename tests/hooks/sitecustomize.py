"""Plays a decoder in C that crashes or hangs, batches that are too large for memory, and a GPU that fails for good.

Put its folder into PYTHONPATH and set PLAY_BAD_DECODER: every Python process that starts then has it. What is played
depends on the images alone: on the first bytes of the file, or on its name (`heavy`, `astray`, `unlucky`). PLAY_PAUSE
are seconds that each batch takes longer, PLAY_STEP_PAUSE those of a training step, PLAY_FOLDER is where `unlucky`
images note that they have met a process.
"""

import os

if os.environ.get("PLAY_BAD_DECODER"):
    import importlib.abc
    import importlib.util
    import sys

    def _spoil_decode(module):
        import ctypes
        import time

        decode = module.decode_image

        def played(data, **more):
            if data.startswith(b"CRASH"):
                ctypes.string_at(0)
            if data.startswith(b"ABORT"):
                os.abort()
            if data.startswith(b"HANG"):
                ctypes.PyDLL(None).sleep(1000)  # with the interpreter's lock held
            if data.startswith(b"SLOW"):
                time.sleep(1000)
            return decode(data, **more)

        module.decode_image = played

    def _spoil_predictor(module):
        import time

        import torch

        run = module.Predictor.run
        failing = []

        def unlucky(key):
            """True for the first process that asks."""
            try:
                open(os.path.join(os.environ["PLAY_FOLDER"], key), "x").close()
            except FileExistsError:
                return False
            return True

        def played(self, images):
            time.sleep(float(os.environ.get("PLAY_PAUSE", "0")))
            keys = [image.key for image in images]
            if len(images) > 1 and any("heavy" in key for key in keys):
                os.kill(os.getpid(), 9)
            if any("astray" in key or ("unlucky" in key and unlucky(key)) for key in keys):
                failing.append(True)
            if failing:
                raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCompile with ...")
            return run(self, images)

        module.Predictor.run = played

    def _slow_step(module):
        import time

        step = module.TrainStep.__call__

        def played(self, *arguments, **more):
            time.sleep(float(os.environ.get("PLAY_STEP_PAUSE", "0")))
            return step(self, *arguments, **more)

        module.TrainStep.__call__ = played

    _SPOILT = {
        "sparse_detr.data.decode": _spoil_decode,
        "pipelines.detect.predictor": _spoil_predictor,
        "pipelines.train.engine.step": _slow_step,
    }

    class _Finder(importlib.abc.MetaPathFinder):
        """Spoils a module when it is imported, so that no process imports more than it would."""

        def find_spec(self, name, path, target=None):
            if name not in _SPOILT:
                return None
            sys.meta_path.remove(self)
            try:
                spec = importlib.util.find_spec(name)
            finally:
                sys.meta_path.insert(0, self)
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                _SPOILT[name](module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, _Finder())
