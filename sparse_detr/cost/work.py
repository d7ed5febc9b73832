"""Arithmetic of single layers, counted: what they multiply, and how many parameters they hold.

One multiply-add counts 1, as in the paper. Sampling and norms count as fvcore counts them, which the authors used: 4
for each bilinear sample, 5 for each number that a layer or group norm returns. Frozen batch norm, activations, softmax
and sums count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PER_SAMPLE = 4
"""Operations of one bilinear sample of one channel."""
PER_NORMED = 5
"""Operations of a norm for each number of its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operations of a part of the model for one image, and its parameters. Parts add up."""

    products: int = 0
    """Multiply-adds of convolutions, linear layers and products of matrices."""
    sampling: int = 0
    """Operations of deformable attention's bilinear samples."""
    norms: int = 0
    """Operations of layer norms and group norms."""
    parameters: int = 0
    """Numbers that are learned, or were."""

    @property
    def total(self) -> int:
        """All operations."""
        return self.products + self.sampling + self.norms

    def __add__(self, other: Work) -> Work:
        return Work(
            products=self.products + other.products,
            sampling=self.sampling + other.sampling,
            norms=self.norms + other.norms,
            parameters=self.parameters + other.parameters,
        )

    def __mul__(self, times: int) -> Work:
        """The work of `times` such layers."""
        return Work(
            products=self.products * times,
            sampling=self.sampling * times,
            norms=self.norms * times,
            parameters=self.parameters * times,
        )

    def reused(self) -> Work:
        """The same work by parameters that another part holds."""
        return replace(self, parameters=0)

    def idle(self) -> Work:
        """The parameters alone, of layers that do not run."""
        return Work(parameters=self.parameters)


def linear(rows: int, inputs: int, outputs: int, *, bias: bool = True) -> Work:
    """A linear layer, or a 1x1 convolution, on `rows` tokens."""
    return Work(products=rows * inputs * outputs, parameters=(inputs + bias) * outputs)


def layer_norm(rows: int, channels: int) -> Work:
    """A layer norm of `rows` tokens, or a group norm of as many pixels."""
    return Work(norms=PER_NORMED * rows * channels, parameters=2 * channels)


def feedforward(rows: int, channels: int, hidden: int) -> Work:
    """Two linear layers with `hidden` numbers between them."""
    return linear(rows, channels, hidden) + linear(rows, hidden, channels)


def full_attention(queries: int, tokens: int, channels: int) -> Work:
    """Every query looks at every token: four linear layers, and two products that grow with queries x tokens."""
    outer = linear(queries, channels, channels) * 2 + linear(tokens, channels, channels) * 2
    return outer + Work(products=2 * queries * tokens * channels)


def deformable_attention(queries: int, tokens: int, channels: int, samples: int, heads: int) -> Work:
    """Every query looks at `samples` places (levels x points) with each head; values of all tokens are projected."""
    inner = linear(queries, channels, heads * samples * 2) + linear(queries, channels, heads * samples)
    outer = linear(tokens, channels, channels) + linear(queries, channels, channels)
    return inner + outer + Work(sampling=PER_SAMPLE * queries * samples * channels)
