"""The random numbers of a training step: the same however many processes and parts compute it.

Shapes: I images of a step or a part, n captions per image, B = I n captions, L caption positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddcap.diffusion.schedule import Schedule
from ddcap.diffusion.transition import noise_tokens


@dataclass(frozen=True)
class Noise:
    """What likelihood training draws for some images.

    Attributes:
        image: (I,) uniform in [0, 1): whether the image is dropped (special design 4).
        timestep: (I, n) t of every caption.
        fate: (I, n, L), see `noise_tokens`.
        words: (I, n, L), see `noise_tokens`.
    """

    image: Tensor
    timestep: Tensor
    fate: Tensor
    words: Tensor

    def of(self, images: Sequence[int], device: torch.device) -> Noise:
        """The numbers of some of the images, in that order, on `device`."""
        rows = torch.tensor(images)
        return Noise(*(numbers[rows].to(device, non_blocking=True) for numbers in vars(self).values()))

    def add_to(self, tokens: Tensor, schedule: Schedule) -> Tensor:
        """x_t (B, L') of x_0 `tokens` (B, L'), L' at most L."""
        length = tokens.shape[1]
        fate, words = (numbers.flatten(0, 1)[:, :length] for numbers in (self.fate, self.words))
        return noise_tokens(tokens, self.timestep.flatten(), schedule, fate, words)


def draw_noise(
    generator: torch.Generator, schedule: Schedule, *, images: int, captions_per_image: int, length: int
) -> Noise:
    """Draw for whole images.

    Args:
        generator: on the CPU: a step draws a few thousand numbers, and a GPU would draw others.
        schedule: the forward process; t is uniform over its steps.
        images: I, of all processes.
        captions_per_image: n.
        length: L, the longest a caption can be.
    """
    captions = (images, captions_per_image)
    return Noise(
        image=torch.rand(images, generator=generator),
        timestep=torch.randint(schedule.steps, captions, generator=generator),
        fate=torch.rand((*captions, length), generator=generator),
        words=torch.randint(schedule.vocabulary_size, (*captions, length), generator=generator),
    )
