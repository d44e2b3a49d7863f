"""The model's judge among candidates, and as an editor."""

import dataclasses

import numpy as np
import pytest
import torch

from ddcap.decoding.generate import generate
from ddcap.decoding.judging import ModelJudge, UnlikelyWords
from ddcap.decoding.sampler import Sampler
from ddcap.errors import RecipeError
from ddcap.model.ddcap import DDCapModel
from ddcap.settings import DecodingSettings, parse_settings

END = 0
FIVE = {"guidance": 1.0, "candidates": 5, "length": 6}


@pytest.fixture(scope="module")
def judging(tiny_model):
    settings = dataclasses.replace(tiny_model.config.model, judge="own", judge_layers=1)
    model = DDCapModel(dataclasses.replace(tiny_model.config, model=settings), tiny_model.encoder)
    with torch.no_grad():
        model.load_state_dict(tiny_model.state_dict(), strict=False)
        for parameter in model.judge.parameters():
            parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def made(model, features, **changes):
    return generate(
        model, features, DecodingSettings(**{**FIVE, **changes}), END, generator=np.random.default_rng(0)
    )


def test_with_weight_1_the_judges_likeliest_candidate_wins(judging, features):
    """Checked against every candidate decoded by itself."""
    chosen = made(judging, features, judge_weight=1.0)
    judge = ModelJudge(judging, END)
    every = [made(judging, features, candidates=1, length=length) for length in (6, 7, 5, 8, 4)]
    means = torch.stack([judge.score(one.tokens, one.lengths, features) / one.lengths for one in every])
    for image, place in enumerate(means.argmax(dim=0).tolist()):
        best, length = every[place], int(every[place].lengths[image])
        assert int(chosen.lengths[image]) == length
        assert chosen.tokens[image, :length].tolist() == best.tokens[image, :length].tolist()


def test_a_weight_of_0_changes_nothing(judging, tiny_model, features):
    assert torch.equal(made(judging, features).tokens, made(tiny_model, features).tokens)


def test_tokens_behind_the_first_end_do_not_count(judging, features):
    tokens = torch.tensor([[3, 4, END, 7, 8], [3, 4, END, 9, END], [5, 6, 7, 8, END]])
    found = ModelJudge(judging, END).log_probabilities(tokens, torch.full((3,), 5), features)
    assert not found[:2, 3:].any() and found[:2, :3].all() and found[2].all()


def test_edits_hide_the_unlikeliest_word_and_its_neighbours(judging, features):
    judge, result = ModelJudge(judging, END), made(judging, features, candidates=1)
    editor, found = UnlikelyWords(judge, features, rounds=2), None
    found = judge.log_probabilities(result.tokens, result.lengths, features)
    first, second = editor.hide(result, 0), editor.hide(result, 1)
    for row, length in enumerate(result.lengths.tolist()):
        for hidden, place in ((first, 0), (second, 1)):
            worst = int(found[row].argsort()[place])
            expected = [p for p in range(worst - 1, worst + 2) if 0 <= p < length - 1]
            assert hidden[row].nonzero().flatten().tolist() == expected
    assert editor.hide(result, 2) is None


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_an_edited_caption_scores_no_lower(judging, features, weight):
    changes = {**FIVE, "judge_weight": weight}
    plain, edited = (DecodingSettings(**changes, edit_rounds=rounds) for rounds in (0, 3))
    before, after = (made(judging, features, judge_weight=weight, edit_rounds=rounds) for rounds in (0, 3))
    sampler = Sampler(judging, features, plain, END)
    assert (sampler.scores(after, 1) >= sampler.scores(before, 1) - 1e-5).all()
    assert edited.edit_rounds == 3 and not torch.equal(before.tokens, after.tokens)


def test_a_model_without_a_judge_says_so(tiny_model):
    settings = parse_settings(DecodingSettings, {"judge_weight": 0.5}, "x")
    with pytest.raises(ValueError, match=r"judge_weight=0\.5: this model has no judge; set it to 0"):
        settings.check_model(tiny_model.config.model, sees_concepts=False)
    with pytest.raises(RecipeError, match="judge_weight=2"):
        parse_settings(DecodingSettings, {"judge_weight": 2}, "x")
