"""Plays a decoder in C that crashes or hangs, and a batch that is too large for memory.

Put its folder into PYTHONPATH and set PLAY_BAD_DECODER: every Python process that starts then has it.
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
        run = module.Predictor.run

        def played(self, images):
            if len(images) > 1 and os.environ.get("PLAY_SHORT_MEMORY"):
                os.kill(os.getpid(), 9)
            return run(self, images)

        module.Predictor.run = played

    _SPOILT = {"sparse_detr.data.decode": _spoil_decode, "pipelines.detect.predictor": _spoil_predictor}

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
