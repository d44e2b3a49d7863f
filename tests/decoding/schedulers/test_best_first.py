import itertools
import math

import numpy as np
import pytest
import torch

from ddcap.arrays import like, to_host
from ddcap.decoding.predictor import Predictor, choose_tokens
from ddcap.decoding.sampler import Drafts, denoise, running_captions
from ddcap.decoding.schedulers.best_first import (
    BestFirstScheduler,
    plan_steps,
)
from ddcap.decoding.schedulers.surest import drop_duplicates, top_k_confident

T, V = 20, 7
MASK = V


def random_log_probabilities(*shape, seed=0):
    return torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed)).log_softmax(dim=-1)


# the plan


@pytest.mark.parametrize("schedule", ["per_caption", "released"])
@pytest.mark.parametrize("steps", [None, *range(1, 25)])
def test_quotas_fill_every_blank(steps, schedule):
    for longest in (1, 12, 20, 24):
        lengths = torch.arange(1, longest + 1).repeat(2)
        blanks = torch.cat([torch.arange(1, longest + 1), (torch.arange(1, longest + 1) + 1) // 2])
        plan = plan_steps(blanks, lengths, T, steps, schedule)
        assert plan.quotas.shape == plan.timesteps.shape
        assert plan.quotas.sum(axis=0).tolist() == blanks.tolist()
        assert (plan.quotas >= 0).all()
        assert ((plan.timesteps >= 0) & (plan.timesteps < T)).all()
        assert (np.diff(plan.timesteps, axis=0) <= 0).all()


@pytest.mark.parametrize("schedule", ["per_caption", "released"])
def test_one_position_a_step_is_the_formula_of_the_release(schedule):
    lengths = torch.arange(1, T + 1)
    plan = plan_steps(lengths, lengths, T, schedule=schedule)
    for column, length in enumerate(lengths.tolist()):
        assert plan.quotas[:length, column].tolist() == [1] * length
        assert plan.timesteps[0, column] == T - 1
        for i in range(1, length):
            assert plan.timesteps[i, column] == math.floor((length - i) * T / length)


def test_released_schedule_of_long_captions():
    lengths = torch.tensor([3, 8, 12])
    plan = plan_steps(lengths, lengths, 8, schedule="released")
    assert plan.quotas.shape == (8, 3)
    for i in range(8):
        assert plan.timesteps[i].tolist() == [7 - i] * 3
        for column, length in enumerate((3, 8, 12)):
            assert plan.quotas[i, column] == length * (i + 1) // 8 - length * i // 8


def test_asked_steps_are_taken():
    plan = plan_steps(torch.tensor([10, 3, 1]), torch.tensor([10, 3, 1]), T, steps=4)
    assert plan.quotas.T.tolist() == [[2, 3, 2, 3], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert plan.timesteps[:, 0].tolist() == [19, 16, 10, 6]


def test_without_steps_long_captions_take_all_steps():
    plan = plan_steps(torch.tensor([12]), torch.tensor([12]), 8)
    assert len(plan.quotas) == 8


def test_a_caption_is_planned_by_itself():
    blanks, lengths = torch.tensor([3, 12, 7]), torch.tensor([5, 12, 7])
    together = plan_steps(blanks, lengths, 8, steps=5)
    for column in range(3):
        alone = plan_steps(blanks[column : column + 1], lengths[column : column + 1], 8, steps=5)
        own = len(alone.quotas)
        assert np.array_equal(together.quotas[:own, column : column + 1], alone.quotas)
        assert np.array_equal(together.timesteps[:own, column : column + 1], alone.timesteps)
        assert (together.quotas[own:, column] == 0).all()


def test_a_caption_without_blanks_commits_nothing():
    plan = plan_steps(torch.tensor([0, 2]), torch.tensor([4, 4]), T)
    assert plan.quotas.T.tolist() == [[0, 0], [1, 1]]


def test_given_words_lower_the_timestep():
    plan = plan_steps(torch.tensor([2]), torch.tensor([10]), T)
    assert plan.timesteps[:, 0].tolist() == [4, 2]


# one step


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_surest_are_those_of_a_slow_loop(kind):
    generator = np.random.default_rng(1)
    is_mask = generator.random((40, 9)) < 0.6
    confidences = generator.integers(1, 5, (40, 9)).astype(np.float32) / 5  # many are equal
    quota = generator.integers(0, 10, 40)
    found = to_host(top_k_confident(kind(is_mask), kind(confidences), kind(quota)))
    for b in range(40):
        expected = sorted(np.flatnonzero(is_mask[b]), key=lambda i: -confidences[b, i])[: int(quota[b])]
        assert np.flatnonzero(found[b]).tolist() == sorted(expected)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_of_positions_with_one_word_the_surest_stays(kind):
    generator = np.random.default_rng(2)
    committed = generator.random((60, 7)) < 0.7
    confidences = generator.integers(1, 5, (60, 7)).astype(np.float32) / 5
    words = generator.integers(0, 4, (60, 7))
    found = to_host(drop_duplicates(kind(committed), kind(words), kind(confidences)))
    for b in range(60):
        expected, seen = [], set()
        for i in sorted(np.flatnonzero(committed[b]), key=lambda i: -confidences[b, i]):
            if words[b, i] not in seen:
                expected.append(i)
            seen.add(words[b, i])
        assert np.flatnonzero(found[b]).tolist() == sorted(expected)


def test_the_likeliest_token_comes_with_its_log_probability():
    logits = 3 * random_log_probabilities(4, 6) + 7
    chosen, log_probability = choose_tokens(logits)
    assert torch.equal(chosen, logits.argmax(dim=2))
    torch.testing.assert_close(log_probability, logits.log_softmax(dim=2).amax(dim=2))


def test_temperature_draws_from_the_sharpened_distribution():
    draws, temperature = 40_000, 0.5
    log_probabilities = random_log_probabilities(1, 1)
    chosen, own = choose_tokens(log_probabilities.expand(1, draws, V), temperature, np.random.default_rng(0))
    expected = (log_probabilities[0, 0] / temperature).softmax(dim=0)
    counts = torch.bincount(chosen.flatten(), minlength=V)
    assert ((counts - expected * draws).abs() <= 5 * (expected * (1 - expected) * draws).sqrt() + 1).all()
    torch.testing.assert_close(own, log_probabilities[0, 0][chosen])  # of p, not of what is drawn from


def test_numpy_and_torch_draw_the_same():
    logits = random_log_probabilities(5, 6)
    drawn = choose_tokens(logits, 1.3, np.random.default_rng(2))
    again = choose_tokens(logits.numpy(), 1.3, np.random.default_rng(2))
    assert np.array_equal(drawn[0].numpy(), again[0])
    np.testing.assert_allclose(drawn[1].numpy(), again[1], rtol=1e-5)
    assert (again[0] != logits.numpy().argmax(axis=2)).any()


# the loop


class Scripted(Predictor):
    """Its answer depends on what it is shown, and is the same for numpy and torch."""

    def __init__(self, seed, lengths):
        self.table = random_log_probabilities(V + 1, 9, seed=seed).numpy()
        self.lengths, self.seed, self.told = lengths, seed, []

    def logits(self, tokens, timestep, positions):
        self.told.append((to_host(tokens), to_host(timestep), to_host(positions)))
        shown = to_host((tokens * (tokens != MASK)).sum(1) + timestep) % (V + 1)
        return like(self.table[shown[:, None], to_host(positions)], tokens)

    def likeliest(self, tokens, timestep, positions):
        return choose_tokens(self.logits(tokens, timestep, positions))

    def select(self, rows):
        part = Scripted(self.seed, self.lengths[rows])
        part.told = self.told
        return part


def decode(predictor, tokens, lengths, steps=None, generator=None, per_image=1, **settings):
    scheduler = BestFirstScheduler(T, MASK, **settings)
    return denoise(predictor, Drafts(tokens, lengths, per_image), scheduler, steps, generator)


@pytest.mark.parametrize("steps", [None, *range(1, 10)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_loop_fills_all_and_takes_nothing_back(steps, temperature):
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([9, 6, 4, 1])
    is_blank = (torch.rand(4, 9, generator=generator) < 0.7) & (torch.arange(9) < lengths.unsqueeze(1))
    is_blank[:, 0] = True
    given = torch.randint(V, (4, 9), generator=generator)
    tokens = torch.where(is_blank, MASK, given)
    plan = plan_steps(is_blank.sum(dim=1), lengths, T, steps)
    result, in_numpy = (
        decode(
            Scripted(5, kind(lengths)),
            kind(tokens),
            kind(lengths),
            steps,
            np.random.default_rng(6),
            per_image=4,
            temperature=temperature,
        )
        for kind in (torch.as_tensor, np.asarray)
    )
    for name, value in vars(result).items():
        np.testing.assert_allclose(value.numpy(), getattr(in_numpy, name), rtol=1e-5, err_msg=name)

    assert (result.tokens != MASK).all()
    assert torch.equal(result.tokens[~is_blank], given[~is_blank])
    assert torch.equal(result.history[0], tokens) and torch.equal(result.history[-1], result.tokens)
    assert len(result.history) == len(result.step_confidences) + 1 == len(result.timesteps) + 1
    was_word = result.history[:-1] != MASK
    assert torch.equal(result.history[1:][was_word], result.history[:-1][was_word])
    committed = ((result.history[:-1] == MASK) & (result.history[1:] != MASK)).sum(dim=2)
    assert np.array_equal(committed.numpy(), plan.quotas)
    assert (result.confidences[~is_blank] == 1).all()


def test_confidence_is_that_of_the_step_of_the_commit():
    lengths = torch.tensor([6])
    result = decode(Scripted(6, lengths), torch.full((1, 6), MASK), lengths)
    again = decode(Scripted(6, lengths), torch.full((1, 6), MASK), lengths)
    assert torch.equal(result.history, again.history)  # nothing is drawn unless asked for
    for position in range(6):
        step = (result.history[:, 0, position] == MASK).sum() - 1
        assert result.confidences[0, position] == result.step_confidences[step, 0, position]


def test_predictor_is_told_the_timesteps_of_the_plan():
    lengths = torch.tensor([5, 3])
    plan, predictor = plan_steps(lengths, lengths, T), Scripted(7, lengths)
    tokens = torch.tensor([[MASK] * 5, [MASK] * 3 + [0, 0]])
    result = decode(predictor, tokens, lengths)  # each is an image of its own
    assert np.array_equal(np.stack([timestep for _, timestep, _ in predictor.told]), plan.timesteps)
    assert np.array_equal(result.timesteps, plan.timesteps)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, None])
def test_distinct_commits_no_word_twice_in_a_step_and_ends(steps):
    lengths = torch.tensor([9, 7, 4, 1])
    tokens = torch.where(torch.arange(9) < lengths.unsqueeze(1), MASK, 0)
    together = decode(Scripted(9, lengths), tokens, lengths, steps, per_image=4, distinct=True)
    for row in range(4):
        own = slice(row, row + 1)
        alone = decode(
            Scripted(9, lengths[own]), tokens[own, : lengths[row]], lengths[own], steps, distinct=True
        )
        assert torch.equal(alone.tokens[0], together.tokens[row, : lengths[row]])
        history = alone.history[:, 0].tolist()
        assert len(history) - 1 >= min(steps or 20, int(lengths[row])) and MASK not in history[-1]
        for step, (before, after) in enumerate(itertools.pairwise(history)):
            came = [word for old, word in zip(before, after, strict=True) if old != word]
            assert len(set(came)) == len(came) > 0
            assert alone.timesteps[step, 0] == min(before.count(MASK) * T // int(lengths[row]), T - 1)
    plain = decode(Scripted(9, lengths), tokens, lengths, steps, per_image=4)
    if steps is None:  # one word a step: there is nothing to be distinct from
        assert torch.equal(plain.history, together.history)
    if steps == 1:
        assert len(together.history) > len(plain.history) == 2


def test_only_open_positions_are_computed():
    lengths = torch.tensor([6, 4, 2] * 2)
    predictor = Scripted(8, lengths)
    tokens = torch.where(torch.arange(6) < lengths.unsqueeze(1), MASK, 0)
    decode(predictor, tokens, lengths, per_image=3)
    shapes = [(*shown.shape, positions.shape[1]) for shown, _, positions in predictor.told]
    # captions that are done are gone, and of the others only MASK positions are asked for
    assert shapes == [(6, 6, 6), (6, 6, 5), (4, 6, 4), (4, 6, 3), (2, 6, 2), (2, 6, 1)]
    for shown, _, positions in predictor.told:
        for caption, asked in zip(shown, positions, strict=True):
            left = np.flatnonzero(caption == MASK)
            assert set(asked) == set(
                left if len(left) else asked[:1]
            )  # a shorter one's first, again and again


class AnyToken:
    """Allows every token, and keeps what is committed where."""

    usable = np.ones(V, dtype=bool)

    def __init__(self):
        self.committed = []

    def allows(self, position, token):  # noqa: ARG002
        return True

    def possible(self, position):  # noqa: ARG002
        return self.usable

    def commit(self, position, token):
        self.committed.append((position, token))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_what_is_allowed_is_told_of_every_word_of_unequal_captions(kind):
    lengths = np.array([6, 2, 4])
    tokens = np.where(np.arange(6) < lengths[:, None], MASK, 0)
    tokens[2, 0] = 3
    if kind == "torch":
        lengths, tokens = torch.from_numpy(lengths), torch.from_numpy(tokens)
    plain = decode(Scripted(3, lengths), tokens, lengths, steps=3)
    allowed = [AnyToken() for _ in range(3)]
    scheduler = BestFirstScheduler(T, MASK)
    result = denoise(Scripted(3, lengths), Drafts(tokens, lengths, 1, allowed=allowed), scheduler, 3)
    assert to_host(result.tokens).tolist() == to_host(plain.tokens).tolist()
    np.testing.assert_allclose(to_host(result.confidences), to_host(plain.confidences), rtol=1e-5)
    for row, one in enumerate(allowed):
        blanks = np.flatnonzero(to_host(tokens)[row] == MASK).tolist()
        words = to_host(result.tokens)[row, blanks].tolist()
        assert sorted(one.committed) == list(zip(blanks, words, strict=True))


def test_every_image_keeps_as_many_captions():
    running = np.array([[True, False, True], [False, False, True]]).reshape(-1)
    assert running_captions(running, 3).tolist() == [0, 2, 3, 5]
    assert running_captions(running, 1).tolist() == list(range(6))
    assert running_captions(np.zeros(4, bool), 2).tolist() == [0, 2]
