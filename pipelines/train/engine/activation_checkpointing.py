"""Layers that forget what they computed and compute it again for the gradient (Chen et al., 2016)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparse_detr.detector import SparseDetr
from sparse_detr.model.backbone.resnet import BasicBlock, Bottleneck
from sparse_detr.model.backbone.swin import Block

BLOCKS = (BasicBlock, Bottleneck, Block)
"""Of backbones: the unit that is computed again."""


def checkpoint_activations(model: SparseDetr, parts: Sequence[str]) -> None:
    """Let the layers of `training.activation_checkpointing` keep only their inputs; gradients and names stay the same.

    torch puts the state of its generators back for the second pass, so that dropout drops the same again.
    """
    for layer in _layers(model, parts):
        layer.forward = functools.partial(_forward, layer.forward)


def _forward(forward: Callable[..., Any], *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    return checkpoint(forward, *arguments, use_reentrant=False)


def _layers(model: SparseDetr, parts: Sequence[str]) -> Iterator[nn.Module]:
    if "backbone" in parts:
        yield from (module for module in model.backbone.modules() if isinstance(module, BLOCKS))
    if "encoder" in parts:
        yield from model.encoder.layers
    if "decoder" in parts:
        yield from model.decoder.layers
