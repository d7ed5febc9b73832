"""Profile of a forward pass by hooks: operators, rows and sampling maps of every part."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_detr.detector import SparseDetr
from sparse_detr.model.config import BackboneConfig, ModelConfig
from sparse_detr.model.deformable_attention import Attended, DeformableAttention
from sparse_detr.records import ImageBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One forward pass of a batch, without gradients."""

    operators: Mapping[str, int]
    """ATen operators that each part of the model called."""
    rows: Mapping[str, int]
    """Tokens of one image that each linear layer saw, all its calls together; a layer that did not run is absent."""
    maps_alive: int
    """Sampling maps (locations of one attention layer) that were held at the same time, at most."""


def trace(model: SparseDetr, batch: ImageBatch, *, with_auxiliary: bool = False) -> Trace:
    """Run the model once and count."""
    rows, maps = Counter[str](), _MapWatch()
    counter = _OperatorCounter()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(_row_counter(rows, name)))
        if isinstance(module, DeformableAttention):
            hooks.append(module.register_forward_hook(maps.see))
        if "." not in name and name:
            hooks.append(module.register_forward_pre_hook(counter.entering(name)))
            hooks.append(module.register_forward_hook(counter.leaving()))
    try:
        with torch.no_grad(), counter:
            model(batch, with_auxiliary=with_auxiliary)
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(operators=dict(counter.counts), rows=dict(rows), maps_alive=maps.most)


class _OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators for the part that runs; what runs between the parts goes to `glue`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()
        self._part = "glue"

    def entering(self, part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._part = part

        return hook

    def leaving(self) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._part = "glue"

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.counts[self._part] += 1
        return func(*args, **(kwargs or {}))


class _MapWatch:
    """Number of results of attention layers that are alive whenever one more comes."""

    def __init__(self) -> None:
        self.most = 0
        self._seen: list[weakref.ref[Tensor]] = []

    def see(self, _module: nn.Module, _inputs: Any, output: Attended) -> None:
        if output.locations is None:  # computed inside the op
            return
        self._seen.append(weakref.ref(output.locations))
        self.most = max(self.most, sum(reference() is not None for reference in self._seen))


def _row_counter(rows: Counter[str], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        rows[name] += inputs[0].shape[-2]

    return hook


def profile_config() -> ModelConfig:
    """A small Sparse DETR, with every part of the large one."""
    return ModelConfig(
        backbone=BackboneConfig(name="resnet_tiny"), channels=64, heads=4, encoder_layers=6, decoder_layers=6,
        feedforward_channels=128, queries=100, keep_ratio=0.1,
    )  # fmt: skip


def table() -> str:
    """Operators, rows and maps of a small model for some batches, in Markdown."""
    model = SparseDetr(profile_config()).eval()
    images = [torch.randn(3, 256, 320) for _ in range(8)]
    runs = [
        trace(model, ImageBatch.from_list(images[:count]), with_auxiliary=auxiliary)
        for count, auxiliary in ((1, False), (2, False), (8, False), (1, True))
    ]
    lines = ["| | 1 image | 2 images | 8 images | 1 image, auxiliary output |", "|---|---|---|---|---|"]
    for part in ("scoring_network", "encoder", "queries", "decoder"):
        lines.append(_row(f"operators of `{part}`", *(run.operators[part] for run in runs)))
    for title, pattern in (
        ("tokens through auxiliary heads of the encoder", "encoder.heads.*.classes"),
        ("tokens through the class head of the proposals", "queries.head.classes"),
        ("tokens through the box head of the proposals", "queries.head.boxes.last"),
        ("queries through class heads of the decoder", "decoder.heads.*.classes"),
        ("queries through box heads of the decoder", "decoder.heads.*.boxes.last"),
    ):
        lines.append(_row(title, *(rows_of(run, pattern) for run in runs)))
    lines.append(_row("sampling maps held at a time", *(run.maps_alive for run in runs)))
    return "\n".join(lines)


def rows_of(run: Trace, pattern: str) -> int:
    """Rows of all layers of that name, in which `*` stands for any number."""
    return sum(count for name, count in run.rows.items() if fnmatch(name, pattern))


def _row(title: str, *numbers: int) -> str:
    return f"| {title} | " + " | ".join(str(number) for number in numbers) + " |"
