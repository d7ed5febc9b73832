"""Feed-forward block of encoder and decoder layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers around a shortcut, then a norm."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, hidden)
        self.contract = nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The next tokens."""
        hidden = self.dropout(self.expand(tokens).relu())
        result: Tensor = self.norm(tokens + self.dropout(self.contract(hidden)))
        return result
