"""How much a part of a step weighs: a step's loss is the same however many processes and parts compute it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ddcap.data.batches import CaptionBatch
from ddcap.objective.likelihood import Losses

if TYPE_CHECKING:
    from accelerate import Accelerator


class Share(NamedTuple):
    """A part's share of its step, times the number of processes, over which gradients are averaged.

    Attributes:
        words: of the real positions of all parts and processes.
        pictures: of their pictures.
    """

    words: float
    pictures: float

    def of(self, losses: Losses, length_weight: float) -> Tensor:
        """What the part's mean losses add to the step's: words by words, lengths by pictures."""
        return self.words * losses.token + self.pictures * length_weight * losses.length


def shares(parts: Sequence[CaptionBatch], accelerator: Accelerator) -> tuple[list[Share], bool]:
    """The share of each of this process's parts, and whether the step has any picture at all.

    All processes have to ask together.
    """
    mine = torch.tensor([[part.words, part.pictures] for part in parts], dtype=torch.float64)  # (parts, 2)
    total = mine.sum(dim=0)
    count = accelerator.num_processes
    if count > 1:
        total = accelerator.reduce(total.float().to(accelerator.device), "sum").cpu().double()
    found = (count * mine / total.clamp(min=1)).tolist()
    return [Share(words, pictures) for words, pictures in found], bool(total[1] > 0)
