"""The slow truth: one-step matrices over V words and MASK, multiplied up."""

from functools import reduce

import pytest
import torch

from ddcap.diffusion import linear_schedule
from ddcap.settings import DiffusionSettings

V, T = 5, 8

SETTINGS = {
    "no replacement": DiffusionSettings(steps=T, keep_start=1.0, keep_end=0.1, mask_start=0.0, mask_end=0.9),
    # here 1 - keep - mask is 1e-17 instead of 0 at t = 0 and 1
    "no replacement, rounded": DiffusionSettings(
        steps=T, keep_start=1.0, keep_end=0.00001, mask_start=0.0, mask_end=0.99999
    ),
    "replacement": DiffusionSettings(steps=T, mask_end=0.9),
    "paper": DiffusionSettings(steps=T),
}


@pytest.fixture(params=SETTINGS)
def schedule(request):
    return linear_schedule(SETTINGS[request.param], V)


@pytest.fixture
def replacing_schedule():
    return linear_schedule(SETTINGS["replacement"], V)


@pytest.fixture(params=["no replacement", "no replacement, rounded"])
def masking_schedule(request):
    return linear_schedule(SETTINGS[request.param], V)


@pytest.fixture(scope="session")
def transition_matrix():
    """A function (schedule, s, t) -> (V + 1, V + 1) float64; entry i, j is q(x_t = j | x_s = i)."""

    def one_step(schedule, t):
        matrix = torch.full((V + 1, V + 1), schedule.replace[t].item(), dtype=torch.float64)
        for word in range(V):
            matrix[word, word] = schedule.keep[t] + schedule.replace[t]
            matrix[word, V] = schedule.mask[t]
        matrix[V] = 0
        matrix[V, V] = 1
        return matrix

    def transition(schedule, earlier, later):
        start = torch.eye(V + 1, dtype=torch.float64)
        return reduce(torch.matmul, (one_step(schedule, t) for t in range(earlier + 1, later + 1)), start)

    return transition
