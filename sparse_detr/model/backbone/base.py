"""Face of every backbone to the rest of the detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Image to maps of strides 8, 16 and 32."""

    channels: tuple[int, ...]
    """Channels of the three maps, fine to coarse."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    @abstractmethod
    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """The three maps, fine to coarse; the side of a map is the image's over its stride, rounded up."""

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training or evaluation; frozen parts stay in evaluation, so that they do not drop anything."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def freeze(self, groups: Sequence[Sequence[nn.Module]], stages: int) -> None:
        """Fix the first `stages` of the groups (the stem, then the four stages): no gradients, evaluation mode."""
        self._frozen = [module for group in groups[:stages] for module in group]
        for module in self._frozen:
            module.requires_grad_(False).eval()
