"""Implementations in the benchmark of the op, and their inputs.

All run their full path (softmax, locations, sampling): ours fused and unfused, ours in plain torch, the `grid_sample`
form that peers run where there is no GPU, that of `transformers` where it is installed, and on a GPU the usual kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.bench.op.im2col import MissingIm2colError, checked, level_table, load_im2col
from sparse_detr.ops import reference
from sparse_detr.ops.deformable_attention import deformable_attention, fused_deformable_attention
from sparse_detr.records import Shapes

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAIN, GRID_SAMPLE, IM2COL, TRANSFORMERS = "plain torch", "grid_sample", "im2col", "transformers"


def _queries() -> dict[str, int]:
    return {"dense": 17821, "sparse": 1782, "decoder": 300}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The sizes to measure at, of one image."""

    shapes: Shapes = ((100, 134), (50, 67), (25, 34), (13, 17))
    """(height, width) of the levels: those of a 3 x 800 x 1066 image at strides 8 to 64."""
    heads: int = 8
    channels: int = 32
    """Of a head."""
    points: int = 4
    queries: Mapping[str, int] = field(default_factory=_queries)
    """Number of queries, by name; at most as many as there are tokens."""

    @property
    def tokens(self) -> int:
        """Over all levels."""
        return sum(height * width for height, width in self.shapes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """One set of tensors to compute with."""

    value: Tensor
    """`[1, T, M, D]`."""
    references: Tensor
    """`[1, Q, L, 2]`, float32 whatever the value's type."""
    offsets: Tensor
    """`[1, Q, M, L, P, 2]`, about 3 pixels of the level."""
    logits: Tensor
    """`[1, Q, M, L, P]`."""
    direction: Tensor
    """`[1, Q, M x D]`, the gradient of the output."""

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors that get a gradient."""
        return self.value, self.offsets, self.logits

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.nbytes for tensor in (*self.leaves, self.references, self.direction))

    def copied(self, dtype: torch.dtype, device: torch.device, backward: bool) -> Inputs:
        """The same numbers in memory of their own; with `backward` the leaves ask for gradients."""
        value, offsets, logits = (t.to(device, dtype, copy=True).requires_grad_(backward) for t in self.leaves)
        references = self.references.to(device, copy=True)
        direction = self.direction.to(device, dtype, copy=True)
        return replace(self, value=value, references=references, offsets=offsets, logits=logits, direction=direction)


def make_inputs(workload: Workload, queries: int) -> Inputs:
    """Float32 on the CPU; the queries are tokens, in no order where they are few."""
    generator = torch.Generator().manual_seed(0)
    centres = []
    for height, width in workload.shapes:
        y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
        centres.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    tokens = torch.cat(centres)
    chosen = tokens if queries == len(tokens) else tokens[torch.randperm(len(tokens), generator=generator)[:queries]]
    axes = (1, queries, workload.heads, len(workload.shapes), workload.points)
    return Inputs(
        value=torch.randn(1, len(tokens), workload.heads, workload.channels, generator=generator),
        references=chosen[None, :, None].expand(1, queries, len(workload.shapes), 2).contiguous(),
        offsets=torch.randn(*axes, 2, generator=generator) * 3,
        logits=torch.randn(*axes, generator=generator),
        direction=torch.randn(1, queries, workload.heads * workload.channels, generator=generator),
    )


def traffic(workload: Workload, inputs: Inputs, dtype: torch.dtype, backward: bool) -> int:
    """Bytes that no implementation can avoid to move, were its caches perfect: every number once in each pass.

    The forward reads references, offsets, logits and what is sampled of the value, and writes the output; the backward
    reads the same and the output's gradient, and writes those of value, offsets and logits.
    """
    samples = inputs.offsets.numel() + inputs.logits.numel()
    read = (samples + touched_numbers(workload, inputs)) * dtype.itemsize + inputs.references.numel() * 4
    output = inputs.direction.numel() * dtype.itemsize
    written = (inputs.value.numel() + samples) * dtype.itemsize
    return 2 * (read + output) + written if backward else read + output


def touched_numbers(workload: Workload, inputs: Inputs) -> int:
    """Count of the value's numbers in pixels that some sample reads: few queries do not read all."""
    locations = reference.locate(inputs.references, inputs.offsets, workload.shapes)
    touched = torch.zeros(workload.tokens, workload.heads, dtype=torch.bool)
    head, start = torch.arange(workload.heads).view(-1, 1), 0
    for level, (height, width) in enumerate(workload.shapes):
        x, y = (locations[0, :, :, level] * locations.new_tensor([width, height]) - 0.5).unbind(-1)
        for column, row in ((x.floor(), y.floor()), (x.ceil(), y.floor()), (x.floor(), y.ceil()), (x.ceil(), y.ceil())):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            cell = (start + row * width + column).long()
            touched[cell[inside], head.expand_as(cell)[inside]] = True
        start += height * width
    return int(touched.sum()) * workload.channels


Attend = Callable[[Inputs], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """One implementation."""

    name: str
    attend: Attend
    """`[1, Q, M x D]` from the inputs."""
    types: tuple[str, ...] | None = None
    """Types of the value that it runs in whatever is asked for; None: those that are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """All that take part."""

    implementations: tuple[Implementation, ...]
    baseline: str
    """Name of the one that ratios are taken to."""
    left_out: Mapping[str, str]
    """Why others do not take part."""


Sampling = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The output from value, locations and weights."""
Peer = Callable[[Shapes, torch.device], Sampling]
"""Makes the sampling of one peer; ImportError and MissingIm2colError say why this machine has none."""


def peers_on(device: torch.device) -> Mapping[str, Peer]:
    """The peers that may run on such a device, by name."""
    return {TRANSFORMERS: _transformers, **({IM2COL: _im2col} if device.type == "cuda" else {})}


def line_up(workload: Workload, device: torch.device, peers: Mapping[str, Peer] | None = None) -> Field:
    """Those that run on this machine; the peers in float32, as they come.

    Args:
        workload: the sizes to measure at.
        device: all tensors are on it.
        peers: None takes those of `peers_on`.

    Raises:
        RuntimeError: the im2col kernel does not compute what plain torch computes.
    """
    shapes, full, left_out = workload.shapes, ("float32",), {}
    located = _located(shapes, device)

    def fused(inputs: Inputs) -> Tensor:
        return fused_deformable_attention(inputs.value, shapes, inputs.references, inputs.offsets, inputs.logits)

    def plain(inputs: Inputs) -> Tensor:
        return reference.fused_deformable_attention(
            inputs.value, shapes, inputs.references, inputs.offsets, inputs.logits
        )

    found = [
        Implementation(name="ours", attend=fused),
        Implementation(name="ours unfused", attend=located(lambda v, x, w: deformable_attention(v, shapes, x, w))),
        Implementation(name=PLAIN, types=full, attend=plain),
        Implementation(name=GRID_SAMPLE, types=full, attend=located(lambda v, x, w: by_grid_sample(v, shapes, x, w))),
    ]  # fmt: skip
    for name, find in (peers_on(device) if peers is None else peers).items():
        try:
            found.append(Implementation(name=name, types=full, attend=located(find(shapes, device))))
        except ImportError as error:
            left_out[name] = f"{error}; pip install 'sparse-detr[compare]'"
        except MissingIm2colError as error:
            left_out[name] = str(error)
    names = [implementation.name for implementation in found]
    return Field(implementations=tuple(found), baseline=IM2COL if IM2COL in names else GRID_SAMPLE, left_out=left_out)


def _located(shapes: Shapes, device: torch.device) -> Callable[[Sampling], Attend]:
    """Puts softmax and locations before a sampling, as peers do; the levels' sizes wait on the device."""
    sizes = torch.tensor([[width, height] for height, width in shapes], dtype=torch.float32, device=device)[:, None]

    def with_locations(sample: Sampling) -> Attend:
        def attend(inputs: Inputs) -> Tensor:
            weights = inputs.logits.flatten(3).softmax(-1).view_as(inputs.logits)
            return sample(inputs.value, inputs.references[:, :, None, :, None] + inputs.offsets / sizes, weights)

        return attend

    return with_locations


def by_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The usual form in torch: one `grid_sample` a level."""
    images, _, heads, _ = value.shape
    queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    for level, part in enumerate(value.split_with_sizes([h * w for h, w in shapes], dim=1)):
        maps = part.flatten(2).transpose(1, 2).reshape(images * heads, -1, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(functional.grid_sample(maps, grid, padding_mode="zeros", align_corners=False))
    shares = weights.transpose(1, 2).reshape(images * heads, 1, queries, -1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    return output.view(images, -1, queries).transpose(1, 2).contiguous()


def _transformers(shapes: Shapes, device: torch.device) -> Sampling:
    """The sampling of Hugging Face's Deformable DETR, called as it comes."""
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    sample, sizes = MultiScaleDeformableAttention(), torch.tensor(shapes, device=device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    return lambda value, locations, weights: sample(value, sizes, list(shapes), starts, locations, weights, 64)


def _im2col(shapes: Shapes, device: torch.device) -> Sampling:
    im2col = checked(load_im2col(torch.cuda.get_device_capability(device)), device)
    levels = level_table(shapes, device)
    return lambda value, locations, weights: im2col.attention(value, levels, locations, weights)
