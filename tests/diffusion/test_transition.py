import math

import pytest
import torch

from ddcap.diffusion import linear_schedule, marginal, noise_tokens, posterior, q_sample
from ddcap.settings import DiffusionSettings

V, T = 5, 8
STRIDES = [(s, t) for t in range(T) for s in range(-1, t)]


def bayes(log_p_x0, x_t, to_s, s_to_t, to_t):
    """p(x_s | x_t) for one position, summed over x_0 in a loop."""
    result = torch.zeros(V + 1, dtype=torch.float64)
    for x_0, p in enumerate(log_p_x0.double().exp()):
        if to_t[x_0, x_t] == 0:
            result[x_t] += p
        else:
            result += p * to_s[x_0] * s_to_t[:, x_t] / to_t[x_0, x_t]
    return result


@pytest.fixture(scope="module")
def log_p_x0():
    logits = torch.randn(1, V + 1, V, generator=torch.Generator().manual_seed(0))
    return logits.log_softmax(dim=2)


def every_state():
    """(1, V + 1): one position per state of x_t, MASK last."""
    return torch.arange(V + 1).unsqueeze(0)


def test_marginal_is_a_row_of_the_matrix(schedule, transition_matrix):
    tokens = torch.arange(V).expand(T + 1, V)
    probabilities = marginal(tokens, torch.arange(-1, T), schedule)
    expected = torch.stack([transition_matrix(schedule, -1, t)[:V] for t in range(-1, T)])
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-6)


def test_posterior_is_bayes_rule(schedule, transition_matrix, log_p_x0):
    for s, t in STRIDES:
        to_s, s_to_t, to_t = (transition_matrix(schedule, *ends) for ends in ((-1, s), (s, t), (-1, t)))
        found = posterior(log_p_x0, every_state(), torch.tensor([t]), torch.tensor([s]), schedule)[0]
        for x_t in range(V + 1):
            if x_t == V and to_t[0, V] == 0:
                continue  # nothing is MASK yet: there is no such x_t
            expected = bayes(log_p_x0[0, x_t], x_t, to_s, s_to_t, to_t)
            torch.testing.assert_close(found[x_t].double(), expected, rtol=0, atol=1e-5)


def test_posterior_sums_to_one(schedule, log_p_x0):
    for s, t in STRIDES:
        words_only = slice(None, V) if schedule.cumulative_mask[t] == 0 else slice(None)
        found = posterior(log_p_x0, every_state(), torch.tensor([t]), torch.tensor([s]), schedule)
        total = found[:, words_only].sum(dim=2)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
        assert (found >= 0).all()


def test_posterior_of_a_batch_is_that_of_each_row(replacing_schedule, log_p_x0):
    timestep, earlier = torch.tensor([7, 3, 1]), torch.tensor([6, -1, 0])
    together = posterior(
        log_p_x0.expand(3, -1, -1), every_state().expand(3, -1), timestep, earlier, replacing_schedule
    )
    for row in range(3):
        alone = posterior(
            log_p_x0, every_state(), timestep[row : row + 1], earlier[row : row + 1], replacing_schedule
        )
        torch.testing.assert_close(together[row : row + 1], alone)


def test_posterior_down_to_the_clean_caption_is_the_prediction_at_mask(schedule, log_p_x0):
    found = posterior(log_p_x0, every_state(), torch.tensor([T - 1]), torch.tensor([-1]), schedule)[0, V]
    torch.testing.assert_close(found[:V], log_p_x0[0, V].exp(), rtol=0, atol=1e-6)
    assert found[V] == 0


def test_posterior_never_turns_a_word_back_into_mask(schedule, log_p_x0):
    found = posterior(log_p_x0, every_state(), torch.tensor([T - 1]), torch.tensor([2]), schedule)
    assert (found[0, :V, V] == 0).all()


def test_sample_frequencies_are_the_marginal(schedule):
    draws = 40_000
    tokens = (torch.arange(T) % V).unsqueeze(1).expand(T, draws)
    noised = q_sample(tokens, torch.arange(T), schedule, torch.Generator().manual_seed(0))
    expected = marginal(tokens[:, :1], torch.arange(T), schedule)[:, 0]  # (T, V + 1)
    counts = torch.stack([(noised == state).sum(dim=1) for state in range(V + 1)], dim=1)
    # five standard deviations of a binomial count, and one draw where the expectation is next to nothing
    allowed = 5 * (expected * (1 - expected) * draws).sqrt() + 1
    assert ((counts - expected * draws).abs() <= allowed).all()


def test_replacement_draws_another_word(replacing_schedule):
    draws = 40_000
    tokens = torch.full((1, draws), 2)
    noised = q_sample(tokens, torch.tensor([T - 1]), replacing_schedule, torch.Generator().manual_seed(1))
    replaced = ((noised != 2) & (noised != V)).double().mean().item()
    expected = 0.1 * (V - 1) / V
    assert replaced == pytest.approx(expected, abs=5 * math.sqrt(expected / draws))
    assert noised.unique().tolist() == list(range(V + 1))


def test_without_replacement_words_stay_or_become_mask(masking_schedule):
    tokens = torch.arange(V).repeat(T, 200)
    noised = q_sample(tokens, torch.arange(T), masking_schedule, torch.Generator().manual_seed(2))
    assert ((noised == tokens) | (noised == V)).all()
    assert (noised == V).any() and (noised != V).any()


def test_the_share_of_changed_tokens_is_exactly_the_probability():
    """Of four fates from 0 on, as many fall under 1/4 and 1/2 as should: the ends belong to what follows."""
    settings = DiffusionSettings(steps=2, keep_start=1.0, keep_end=0.5, mask_start=0.0, mask_end=0.25)
    schedule = linear_schedule(settings, V)
    tokens, words = torch.full((2, 4), 2), torch.full((2, 4), 4)
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75]).expand(2, 4)
    noised = noise_tokens(tokens, torch.tensor([0, 1]), schedule, uniform, words)
    assert noised.tolist() == [[2, 2, 2, 2], [V, 4, 2, 2]]


def test_same_seed_same_sample(replacing_schedule):
    tokens = torch.arange(V).repeat(T, 20)

    def draw(seed):
        return q_sample(tokens, torch.arange(T), replacing_schedule, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_sampling_builds_nothing_of_the_size_of_the_vocabulary():
    vocabulary_size = 10**9  # one float per word and position would be five terabytes
    schedule = linear_schedule(DiffusionSettings(mask_end=0.5), vocabulary_size)
    tokens = torch.full((64, 20), 7)
    noised = q_sample(tokens, torch.full((64,), 19), schedule, torch.Generator().manual_seed(0))
    assert noised.shape == (64, 20)
    assert noised.dtype == torch.int64
    assert (noised == vocabulary_size).any()
    assert noised[noised != vocabulary_size].max() > 10**6
