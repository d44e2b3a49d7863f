"""Both judges: what they see, and that their likelihood is a distribution over captions."""

import dataclasses
import itertools

import pytest
import torch

from ddcap.errors import RecipeError
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.settings import ModelSettings, parse_settings

KINDS = ["shared", "own"]


def build(config, perturbed, kind, **changes):
    settings = dataclasses.replace(config.model, judge=kind, dropout=0.0, **changes)
    model = perturbed(DDCapModel, dataclasses.replace(config, model=settings))
    if kind == "shared":
        with torch.no_grad():
            model.denoiser.reading_embedding.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(params=KINDS)
def judging(request, config, perturbed):
    return build(config, perturbed, request.param)


def test_a_token_is_judged_by_those_before_it_alone(judging, features):
    judge = judging.caption_judge(features)
    tokens = torch.tensor([[3, 5, 7, 9, 1], [3, 5, 8, 9, 1], [3, 5, 7, 9, 1], [3, 5, 7, 2, 1]])
    found = judge.log_probabilities(tokens)
    torch.testing.assert_close(found[0, :2], found[1, :2])  # they differ from the third token on
    assert (found[0, 2:] - found[1, 2:]).abs().min() > 1e-3
    assert (found[0] - found[2]).abs().min() > 1e-4  # the same caption of another image


def test_judge_is_a_distribution_over_the_next_token(judging, features):
    one = ImageFeatures(features.memory[:1], features.summary[:1])
    rows = torch.tensor([[4, 6, word] for word in range(judging.config.vocabulary_size)])
    found = judging.caption_judge(one).log_probabilities(rows)
    assert float(found[:, 2].exp().sum()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(found[:, :2], found[:1, :2].expand(len(rows), 2))


def test_captions_of_different_lengths_are_judged_as_alone(judging, features):
    """A caption's score does not depend on what it is judged beside, nor on what stands behind it."""
    rows = [[3, 5, 1], [4, 2, 6, 8, 1], [7, 1], [3, 3, 3, 1]]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [9] * (longest - len(row)) for row in rows])
    found = judging.caption_judge(features).log_probabilities(tokens)
    for number, row in enumerate(rows):
        own = ImageFeatures(features.memory[number // 2, None], features.summary[number // 2, None])
        alone = judging.caption_judge(own).log_probabilities(torch.tensor([row]))
        torch.testing.assert_close(found[number, : len(row)], alone[0], atol=1e-5, rtol=1e-5)


def test_a_shared_judge_is_not_told_how_many_tokens_follow(config, perturbed, features):
    judging = build(config, perturbed, "shared", length_difference=True)
    judge = judging.caption_judge(features)
    short = judge.log_probabilities(torch.tensor([[3, 5, 1]] * 2))
    long = judge.log_probabilities(torch.tensor([[3, 5, 1, 6, 7, 1]] * 2))
    torch.testing.assert_close(short, long[:, :3])


def test_denoising_with_a_shared_judge_is_denoising_without_it(config, perturbed, features):
    """The judge's vector is for reading; a mixed batch is each of its captions alone."""
    judging = build(config, perturbed, "shared")
    tokens = torch.tensor([[3, 23, 7, 1], [23, 23, 23, 1], [3, 5, 7, 1], [4, 6, 9, 1]])
    timestep, lengths = torch.tensor([3, 7, 0, 0]), torch.full((4,), 4)
    keys_values = judging.project_memory(features)
    is_read = torch.tensor([False, False, True, False])
    seen = torch.where(is_read.unsqueeze(1), judging.shifted(tokens), tokens)
    mixed = judging(seen, timestep, lengths, keys_values, is_read=is_read)
    plain = judging(tokens, timestep, lengths, keys_values)
    torch.testing.assert_close(mixed[[0, 1, 3]], plain[[0, 1, 3]])
    assert (mixed[2] - plain[2]).abs().min() > 1e-6


def test_an_own_judge_changes_nothing_else(config, perturbed, shared_model):
    judging = build(config, perturbed, "own")
    theirs = {name for name in judging.stored_state() if not name.startswith("judge.")}
    assert theirs == set(shared_model.stored_state())


@pytest.mark.parametrize("kind", KINDS)
def test_judge_is_stored_and_loaded(kind, config, perturbed, features, tmp_path):
    judging = build(config, perturbed, kind)
    judging.save_pretrained(tmp_path)
    loaded = DDCapModel.from_pretrained(tmp_path)
    tokens = torch.tensor([[3, 5, 7, 1], [4, 2, 6, 1]])
    ours, theirs = (one.caption_judge(features).log_probabilities(tokens) for one in (judging, loaded))
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=1e-2)  # stored in float16


def test_no_judge_unless_asked_for(shared_model, features):
    assert shared_model.caption_judge(features) is None


@pytest.mark.parametrize("changes", [{"kind": "autoregressive"}, {"padding": "known"}])
def test_impossible_judges_are_refused(changes):
    off = {"concentrated_attention": False, "length_prediction": False}
    with pytest.raises(RecipeError, match=r"model\.judge=shared"):
        parse_settings(ModelSettings, {**off, **changes, "judge": "shared"}, "x")


def test_likelihoods_of_all_short_captions_sum_to_one(config, perturbed, features):
    """Captions of two tokens and what can follow them: the judge is a language model."""
    judging = build(config, perturbed, "own")
    one = ImageFeatures(features.memory[:1], features.summary[:1])
    size = judging.config.vocabulary_size
    pairs = torch.tensor([*itertools.product(range(size), repeat=2)])
    found = judging.caption_judge(one).log_probabilities(pairs)
    assert float(found.sum(dim=1).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_an_own_judge_starts_as_the_denoiser_reads(config, perturbed, features):
    """With as many blocks as the denoiser, its states are the denoiser's at t = 0 under a causal mask."""
    judging = build(config, perturbed, "own", judge_layers=config.model.layers)
    judging.judge.start_from(judging.denoiser)
    tokens = torch.tensor([[3, 5, 7, 1], [4, 2, 6, 1]])
    memory, _ = judging.memory(features)
    found = judging.judge(tokens, judging.denoiser.token_embedding.weight, memory)
    causal = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 4, 4)
    keys_values, zeros = judging.project_memory(features), torch.zeros(2, dtype=torch.long)
    expected = judging.denoiser(judging.shifted(tokens), zeros, keys_values, causal)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_packed_reading_is_reading(config, perturbed, features):
    judging = build(config, perturbed, "own")
    tokens = torch.tensor([[3, 5, 7, 1], [4, 1, 0, 0]])
    whole, lengths = judging.read(tokens, features), torch.tensor([4, 2])
    packed = judging.read(tokens, features, lengths=lengths)
    torch.testing.assert_close(packed[0], whole[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1, :2], whole[1, :2], atol=1e-5, rtol=1e-5)
    assert not packed[1, 2:].any()
