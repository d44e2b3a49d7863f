import math

import pytest
import torch

from ddcap.decoding.reverse_process import best_first_step, choose_tokens, decode_best_first, plan_steps

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
        assert torch.equal(plan.quotas.sum(dim=0), blanks)
        assert (plan.quotas >= 0).all()
        assert ((plan.timesteps >= 0) & (plan.timesteps < T)).all()
        assert (plan.timesteps.diff(dim=0) <= 0).all()


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
        assert torch.equal(together.quotas[:own, column : column + 1], alone.quotas)
        assert torch.equal(together.timesteps[:own, column : column + 1], alone.timesteps)
        assert (together.quotas[own:, column] == 0).all()


def test_a_caption_without_blanks_commits_nothing():
    plan = plan_steps(torch.tensor([0, 2]), torch.tensor([4, 4]), T)
    assert plan.quotas.T.tolist() == [[0, 0], [1, 1]]


def test_given_words_lower_the_timestep():
    plan = plan_steps(torch.tensor([2]), torch.tensor([10]), T)
    assert plan.timesteps[:, 0].tolist() == [4, 2]


# one step


def test_step_against_a_slow_loop():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(V, (40, 9), generator=generator)
    tokens[torch.rand(40, 9, generator=generator) < 0.6] = MASK
    quota = torch.randint(0, 10, (40,), generator=generator)
    log_probabilities = random_log_probabilities(40, 9)
    step = best_first_step(tokens, log_probabilities, quota, MASK)
    for b in range(40):
        best = {i: log_probabilities[b, i].max().item() for i in range(9) if tokens[b, i] == MASK}
        expected = sorted(best, key=lambda i: -best[i])[: int(quota[b])]
        assert step.committed[b].nonzero().flatten().tolist() == sorted(expected)
        for i in range(9):
            likeliest = log_probabilities[b, i].argmax()
            assert step.tokens[b, i] == (likeliest if i in expected else tokens[b, i])
            assert step.confidences[b, i].item() == pytest.approx(
                math.exp(log_probabilities[b, i, likeliest]), rel=1e-5
            )


def test_equally_sure_positions_go_from_left_to_right():
    log_probabilities = random_log_probabilities(1, 1).expand(1, 5, V)
    step = best_first_step(torch.full((1, 5), MASK), log_probabilities, torch.tensor([2]), MASK)
    assert step.committed.tolist() == [[True, True, False, False, False]]


def test_temperature_draws_from_the_sharpened_distribution():
    draws, temperature = 40_000, 0.5
    log_probabilities = random_log_probabilities(1, 1)
    chosen = choose_tokens(
        log_probabilities.expand(1, draws, V), temperature, torch.Generator().manual_seed(0)
    )
    expected = (log_probabilities[0, 0] / temperature).softmax(dim=0)
    counts = torch.bincount(chosen.flatten(), minlength=V)
    assert ((counts - expected * draws).abs() <= 5 * (expected * (1 - expected) * draws).sqrt() + 1).all()


def test_a_drawn_token_carries_its_own_probability():
    log_probabilities = random_log_probabilities(4, 6)
    generator = torch.Generator().manual_seed(3)
    step = best_first_step(
        torch.full((4, 6), MASK), log_probabilities, torch.full((4,), 6), MASK, 1.5, generator
    )
    own = log_probabilities.gather(2, step.tokens.unsqueeze(2)).squeeze(2).exp()
    torch.testing.assert_close(step.confidences, own)
    assert (step.tokens != log_probabilities.argmax(dim=2)).any()


# the loop


def scripted(seed):
    """A predictor whose answer depends on what it is shown."""

    def predict(tokens, timestep):
        table = random_log_probabilities(V + 1, tokens.shape[1], seed=seed)  # by the sum of what is shown
        return table[(tokens.sum(dim=1) + timestep) % (V + 1)]

    return predict


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
    result = decode_best_first(scripted(5), tokens, lengths, plan, MASK, temperature, generator)

    assert (result.tokens != MASK).all()
    assert torch.equal(result.tokens[~is_blank], given[~is_blank])
    assert torch.equal(result.history[0], tokens) and torch.equal(result.history[-1], result.tokens)
    assert len(result.history) == len(result.step_confidences) + 1 == len(result.timesteps) + 1
    was_word = result.history[:-1] != MASK
    assert torch.equal(result.history[1:][was_word], result.history[:-1][was_word])
    committed = ((result.history[:-1] == MASK) & (result.history[1:] != MASK)).sum(dim=2)
    assert torch.equal(committed, plan.quotas)
    assert (result.confidences[~is_blank] == 1).all()


def test_confidence_is_that_of_the_step_of_the_commit():
    lengths = torch.tensor([6])
    plan = plan_steps(lengths, lengths, T)
    result = decode_best_first(scripted(6), torch.full((1, 6), MASK), lengths, plan, MASK)
    undrawn = decode_best_first(scripted(6), torch.full((1, 6), MASK), lengths, plan, MASK, temperature=0.0)
    assert torch.equal(result.history, undrawn.history)  # nothing is drawn unless asked for
    for position in range(6):
        step = (result.history[:, 0, position] == MASK).sum() - 1
        assert result.confidences[0, position] == result.step_confidences[step, 0, position]


def test_predictor_is_told_the_timesteps_of_the_plan():
    told = []

    def predict(tokens, timestep):
        told.append(timestep)
        return random_log_probabilities(*tokens.shape)

    lengths = torch.tensor([5, 3])
    plan = plan_steps(lengths, lengths, T)
    tokens = torch.tensor([[MASK] * 5, [MASK] * 3 + [0, 0]])
    result = decode_best_first(predict, tokens, lengths, plan, MASK)
    assert torch.equal(torch.stack(told), plan.timesteps)
    assert torch.equal(result.timesteps, plan.timesteps)
