import itertools

import numpy as np
import pytest
import torch

from ddcap.decoding.predictor import Predictor
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.ancestral import AncestralScheduler
from ddcap.diffusion import linear_schedule, posterior
from ddcap.settings import DiffusionSettings

V, T = 5, 8
MASK = V
SETTINGS = {
    "replacement": DiffusionSettings(steps=T, mask_end=0.9),
    "no replacement": DiffusionSettings(steps=T, keep_start=1.0, keep_end=0.1, mask_start=0.0, mask_end=0.9),
    "paper": DiffusionSettings(steps=T),
}
LENGTHS = torch.tensor([6, 4])
BLANK = torch.tensor([[MASK] * 6, [MASK] * 4 + [0, 0]])


@pytest.fixture(params=SETTINGS)
def schedule(request):
    return linear_schedule(SETTINGS[request.param], V)


class Told(Predictor):
    """Predicts what a function of tokens and timesteps says."""

    def __init__(self, predict):
        self.predict = predict

    def logits(self, tokens, timestep, positions):
        assert (positions == torch.arange(tokens.shape[1])).all()
        return self.predict(tokens, timestep)


def decode(predict, tokens, lengths, schedule, steps=None, temperature=1.0, generator=None):
    scheduler = AncestralScheduler(schedule, temperature)
    return denoise(Told(predict), Drafts(tokens, lengths), scheduler, steps, generator)


def always(caption):
    """A predictor that is sure of `caption` (B, L)."""

    def predict(tokens, timestep):
        assert timestep.shape == tokens.shape[:1]
        logits = torch.full((*tokens.shape, V), -1e9).scatter(2, caption.unsqueeze(2), 0.0)
        return logits.log_softmax(dim=2)

    return predict


def undecided(distribution):
    def predict(tokens, timestep):  # noqa: ARG001
        return distribution.log().expand(*tokens.shape, V)

    return predict


@pytest.mark.parametrize("steps", [None, *range(1, T + 3)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_chain_ends_at_a_caption_predicted_all_along(schedule, steps, temperature):
    caption = torch.tensor([[1, 4, 0, 2, 3, 3], [2, 2, 1, 0, 0, 0]])
    generator = np.random.default_rng(0)
    result = decode(always(caption), BLANK, LENGTHS, schedule, steps, temperature, generator)
    assert torch.equal(result.tokens, caption)
    assert len(result.timesteps) == min(steps or T, T)


@pytest.mark.parametrize("steps", range(1, T + 1))
def test_nothing_is_mask_at_the_end(schedule, steps):
    distribution = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1])
    generator = np.random.default_rng(steps)
    tokens = torch.full((200, 6), MASK)
    result = decode(
        undecided(distribution), tokens, torch.full((200,), 6), schedule, steps, generator=generator
    )
    assert (result.tokens != MASK).all()
    assert torch.equal(result.tokens, result.history[-1])
    was_word = result.history[:-1] != MASK
    assert (result.history[1:][was_word] != MASK).all()


def test_nothing_is_mask_at_the_end_however_hot(schedule):
    generator = np.random.default_rng(0)
    predict = undecided(torch.full((V,), 1 / V))
    result = decode(predict, BLANK, LENGTHS, schedule, temperature=100.0, generator=generator)
    assert (result.tokens != MASK).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_one_token_captions_follow_the_chain(steps):
    schedule = linear_schedule(SETTINGS["replacement"], V)
    distribution = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    draws = 40_000
    result = decode(
        undecided(distribution),
        torch.full((draws, 1), MASK),
        torch.ones(draws, dtype=torch.long),
        schedule,
        steps,
        generator=np.random.default_rng(0),
    )
    # the same chain as one matrix per step, multiplied up
    states = torch.arange(V + 1).unsqueeze(0)
    log_p_x0 = distribution.log().expand(1, V + 1, V)
    times = [*result.timesteps[:, 0].tolist(), -1]
    probabilities = torch.eye(V + 1)[MASK]
    for now, earlier in itertools.pairwise(times):
        matrix = posterior(log_p_x0, states, torch.tensor([now]), torch.tensor([earlier]), schedule)[0]
        probabilities = probabilities @ matrix
    counts = torch.bincount(result.tokens.flatten(), minlength=V + 1)
    allowed = 5 * (probabilities * (1 - probabilities) * draws).clamp(min=0).sqrt() + 1
    assert ((counts - probabilities * draws).abs() <= allowed).all()


def test_words_are_revised_only_with_replacement():
    def revisions(name):
        result = decode(
            undecided(torch.full((V,), 1 / V)),
            torch.full((300, 4), MASK),
            torch.full((300,), 4),
            linear_schedule(SETTINGS[name], V),
            generator=np.random.default_rng(1),
        )
        before, after = result.history[:-1], result.history[1:]
        return int(((before != MASK) & (before != after)).sum())

    assert revisions("no replacement") == 0
    assert revisions("replacement") > 10


def test_steps_are_spread_evenly_from_the_noisiest_on():
    schedule = linear_schedule(SETTINGS["paper"], V)
    caption = torch.zeros(2, 6, dtype=torch.long)

    def times(steps):
        return decode(always(caption), BLANK, LENGTHS, schedule, steps).timesteps[:, 0].tolist()

    assert times(None) == [7, 6, 5, 4, 3, 2, 1, 0]
    assert times(4) == [7, 5, 3, 1]
    assert times(1) == [7]


def test_given_words_and_padding_stay(schedule):
    tokens = torch.tensor([[MASK, 3, MASK, 1, MASK, 4], [2, MASK, MASK, 0, 4, 4]])
    result = decode(
        undecided(torch.full((V,), 1 / V)),
        tokens,
        LENGTHS,
        schedule,
        generator=np.random.default_rng(2),
    )
    given = tokens != MASK
    assert (result.history[:, given] == tokens[given]).all()
    assert (result.confidences[given] == 1).all()
    assert (result.confidences[~given] < 1).all()


def test_a_confidence_is_what_the_model_gave_the_word_when_it_came():
    """Words are replaced here; the model's opinion changes with every step."""
    table = torch.randn(T, V, generator=torch.Generator().manual_seed(3)).softmax(dim=1)

    def predict(tokens, timestep):
        return table[timestep].log().unsqueeze(1).expand(*tokens.shape, V)

    result = decode(
        predict,
        torch.full((50, 4), MASK),
        torch.full((50,), 4),
        linear_schedule(SETTINGS["replacement"], V),
        generator=np.random.default_rng(4),
    )
    assert (result.tokens == V - 1).any()
    for row in range(50):
        for place in range(4):
            words = result.history[:, row, place].tolist()
            came = max(step for step in range(T) if words[step] != words[step + 1])
            expected = float(table[T - 1 - came, words[-1]])
            assert result.confidences[row, place].item() == pytest.approx(expected)
            assert result.step_confidences[came, row, place].item() == pytest.approx(expected)


def test_same_seed_same_captions(schedule):
    def draw(seed):
        predict = undecided(torch.full((V,), 1 / V))
        generator = np.random.default_rng(seed)
        return decode(predict, BLANK, LENGTHS, schedule, generator=generator).tokens

    assert torch.equal(draw(5), draw(5))
    assert not torch.equal(draw(5), draw(6))
