"""The normal reverse process (row a of Table 1): sample x_{t-1} from p(x_{t-1} | x_t) until t = 0.

Shapes: B captions, L positions, S steps, V words (the id V is MASK).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddcap.arrays import like
from ddcap.decoding.predictor import choose_tokens, log_normalised
from ddcap.decoding.schedulers.interface import AllowedTokens, ModelOutput, SchedulerOutput
from ddcap.diffusion import Schedule, posterior


class AncestralScheduler:
    """Sample a caption by the reverse process; the steps are spread evenly over t.

    Args:
        diffusion: the forward process.
        temperature: 1 samples the reverse process as it is; 0 takes the likeliest state everywhere.
    """

    reads_logits = True

    def __init__(self, diffusion: Schedule, temperature: float = 1.0) -> None:
        self.diffusion, self.temperature = diffusion, temperature
        self.mask_id = diffusion.vocabulary_size

    def set_timesteps(
        self,
        num_inference_steps: int | None,
        sample: Tensor,
        lengths: Tensor,  # noqa: ARG002 (all captions take the same steps)
    ) -> None:
        """See `Scheduler`; None takes all T steps."""
        total = self.diffusion.steps
        count = min(num_inference_steps or total, total)
        grid = torch.linspace(total - 1, -1, count + 1).round().long().numpy()  # T-1, ..., -1
        self._grid, self._index = grid, 0
        self.timesteps = np.repeat(grid[:-1, None], len(sample), axis=1)
        self._wanted = sample == self.mask_id  # (B, L)

    @property
    def is_done(self) -> bool:
        """See `Scheduler`."""
        return self._index == len(self.timesteps)

    @property
    def running(self) -> np.ndarray:
        """(B,) True: a word may change until the last step."""
        return np.ones(self.timesteps.shape[1], dtype=bool)

    def timestep(self) -> np.ndarray:
        """(B,) t of the next step."""
        timesteps: np.ndarray = self.timesteps[self._index]
        return timesteps

    def positions(self, sample: Tensor, rows: np.ndarray) -> Tensor:  # noqa: ARG002 (all captions run)
        """(B, L) all positions."""
        everywhere: Tensor = like(np.broadcast_to(np.arange(sample.shape[1]), tuple(sample.shape)), sample)
        return everywhere

    def step(
        self,
        model_output: ModelOutput,
        timestep: np.ndarray,
        sample: Tensor,
        rows: np.ndarray,  # noqa: ARG002 (all captions run)
        *,
        generator: np.random.Generator | None = None,
        allowed: Sequence[AllowedTokens] | None = None,
    ) -> SchedulerOutput:
        """See `Scheduler`; all tokens have to be allowed, since a word may come back as another one."""
        if allowed is not None:
            raise ValueError("the reverse process cannot keep to allowed tokens")
        log_p_x0: Tensor = log_normalised(model_output.logits)  # (B, L, V)
        self._index += 1
        now = like(timestep, sample)
        earlier = int(self._grid[self._index])
        probabilities = posterior(
            log_p_x0, sample, now, torch.full_like(now, earlier), self.diffusion
        )  # (B, L, V + 1)
        log_probabilities = probabilities.clamp(min=1e-30).log()
        if earlier == -1:
            log_probabilities[..., self.mask_id] = -torch.inf  # 1e-30 is not 0: nothing is MASK at the end
        chosen, _ = choose_tokens(log_probabilities, self.temperature, generator)
        # how sure the model is of a word is p(x_0 | x_t); p(x_s | x_t) would mostly say how far t moved
        word = chosen.clamp(max=self.mask_id - 1).unsqueeze(2)
        probability = log_p_x0.gather(2, word).squeeze(2).exp()
        return SchedulerOutput(torch.where(self._wanted, chosen, sample), probability)
