"""Special design 1: the caption's length from the picture's summary."""

from __future__ import annotations

from torch import Tensor, nn


class TanhMLP(nn.Sequential):
    """Two linear layers with a tanh between: the shape of the release's image projection and length head."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class LengthHead(nn.Module):
    """Summary (B, S) to length logits (B, max_length); class k means k + 1 tokens, end token included."""

    def __init__(self, summary_width: int, hidden: int, max_length: int) -> None:
        super().__init__()
        self.mlp = TanhMLP(summary_width, hidden, max_length)

    def forward(self, summary: Tensor) -> Tensor:
        """Logits (B, max_length) of `summary` (B, S)."""
        logits: Tensor = self.mlp(summary)
        return logits
