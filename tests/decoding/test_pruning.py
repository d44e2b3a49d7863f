"""Pruning: which candidates go on, what it saves, and that captions are those of a slow way to the same."""

import numpy as np
import pytest
import torch

from ddcap import Captioner
from ddcap.choices import caption_drafts
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.constraints import Constraints
from ddcap.decoding.generate import constrained_captions, generate, nearest_lengths, whole_captions
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.pruning import Pruning
from ddcap.decoding.sampler import Sampler, running_captions
from ddcap.errors import RecipeError
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings, parse_settings

END = 0
FIVE = {"guidance": 1.0, "candidates": 5, "length": 8, "length_penalty": 1.2, "distinct": True}


def made(model, features, **changes):
    return generate(
        model, features, DecodingSettings(**{**FIVE, **changes}), END, generator=np.random.default_rng(0)
    )


def alone(model, features, length):
    """The caption of a length, as if it were the only candidate."""
    return made(model, features, candidates=1, length=length)


def part(features, image):
    return ImageFeatures(features.memory[image : image + 1], features.summary[image : image + 1], None)


def same(one, other):
    assert torch.equal(one.lengths, other.lengths) and torch.equal(one.tokens, other.tokens)


def draft_score(result, step):
    """(I,) the score of captions if each MASK that is left became what that step predicted."""
    now = result.history[step]
    sure = torch.where(
        now == result.history[0],  # still MASK, as all were
        result.step_confidences[step - 1],
        result.confidences,
    )
    return sure.log().sum(axis=1) / result.lengths**1.2


@pytest.mark.parametrize("step, left", [(1, 2), (3, 2), (4, 1), (2, 3)])
def test_the_best_drafts_go_on(tiny_model, features, step, left):
    """Against every candidate decoded by itself, and its draft scored by hand."""
    every = [alone(tiny_model, features, length) for length in nearest_lengths(8, 5, 12)]
    drafts = torch.stack([draft_score(one, step) for one in every])  # (5, I)
    ends = torch.stack([one.evidence(1.2) for one in every])
    survive = drafts.argsort(dim=0, descending=True)[:left]
    found = made(tiny_model, features, prune=(*[5] * (step - 1), left))
    for image in range(features.images):
        best = survive[ends[survive[:, image], image].argmax(), image]
        length = int(every[best].lengths[image])
        assert int(found.lengths[image]) == length
        assert found.tokens[image, :length].tolist() == every[best].tokens[image, :length].tolist()
        torch.testing.assert_close(found.confidences[image, :length], every[best].confidences[image, :length])
    plain = made(tiny_model, features)
    assert (found.evidence(1.2) <= plain.evidence(1.2) + 1e-5).all()
    if left == 1:
        assert not torch.equal(found.lengths, plain.lengths)  # it does something


def test_pruning_is_off_by_default(tiny_model, features):
    assert DecodingSettings().prune == ()
    plain = made(tiny_model, features)
    for prune in ((), (5,), (9, 5, 5)):
        same(made(tiny_model, features, prune=prune), plain)
    one = alone(tiny_model, features, 8)
    same(made(tiny_model, features, candidates=1, prune=(1,)), one)


def test_dropped_candidates_are_not_computed(tiny_model, features):
    told = []
    settings = DecodingSettings(**FIVE, prune=(5, 3, 3, 2))
    sampler = Sampler(tiny_model, features, settings, END, watch=lambda tokens: told.append(len(tokens)))
    found = whole_captions(sampler)
    assert [rows // features.images for rows in told[:6]] == [5, 5, 3, 3, 2, 2]
    assert found.per_image == 2 and len(found.result.tokens) == 2 * features.images
    assert not (found.result.tokens == tiny_model.mask_id).any()
    assert len(found.result.history) == len(told) + 1


@pytest.mark.parametrize("changes", [{}, {"steps": 4}, {"temperature": 0.0, "order": "margin"}])
def test_a_batch_is_its_images_one_by_one(tiny_model, features, changes):
    settings = {**changes, "prune": (4, 4, 2)}
    together = made(tiny_model, features, **settings)
    for image in range(features.images):
        one = made(tiny_model, part(features, image), **settings)
        length = int(one.lengths[0])
        assert int(together.lengths[image]) == length
        assert together.tokens[image, :length].tolist() == one.tokens[0].tolist()


def test_same_seed_same_caption(tiny_model, features):
    drawn = [made(tiny_model, features, prune=(3, 2), temperature=1.0) for _ in range(2)]
    same(*drawn)


def test_as_many_candidates_are_finished_as_wanted(tiny_model, features):
    """The first of several is the one; those that were dropped rank behind, however likely they became."""
    settings = DecodingSettings(**FIVE, prune=(5, 5, 5, 1))
    (one, several) = (generate(tiny_model, features, settings, END, captions_per_image=n) for n in (1, 5))
    plain = made(tiny_model, features)
    assert not torch.equal(one.lengths, plain.lengths)
    first = several.select(torch.arange(0, 5 * features.images, 5))
    same(one, first)
    assert not (several.tokens == tiny_model.mask_id).any()
    found = whole_captions(Sampler(tiny_model, features, settings, END), 5)
    assert found.survives.reshape(-1, 5).sum(axis=1).tolist() == [1] * features.images
    for image, scores in enumerate(several.evidence(1.2).reshape(-1, 5).tolist()):
        assert scores[1:] == sorted(scores[1:], reverse=True), image


def test_of_equals_the_first_go_on():
    pruning = Pruning((3, 3, 1), 8, 4, lambda _, confidences: confidences)
    pruning.step(lambda: (None, np.array([1.0, 2, 1, 1, 3, 0, 3, 3])))
    assert pruning.rows.tolist() == [0, 1, 2, 4, 6, 7] and pruning.survivors == 3
    pruning.step(lambda: (None, np.zeros(8)))
    pruning.step(lambda: (None, np.array([0.0, 0, 0, 9, 1, 9, 2, 2])))
    assert pruning.rows.tolist() == [0, 6]
    pruning.step(lambda: (None, np.arange(8.0)))
    assert pruning.rows.tolist() == [0, 6]


def test_a_caption_that_is_dropped_never_fills_a_row():
    running = np.array([True, True, False, True, True, True])
    decoded = np.array([False, True, True, False, True, True])
    assert running_captions(running & decoded, 3, decoded).tolist() == [1, 2, 4, 5]


def test_required_words_survive_pruning(photos):
    default = Captioner.from_pretrained()
    assert "dog" in default(photos[0], include=["dog"], prune=(4, 2))[0].text.split()
    features, vocabulary = default.features(photos[:2]), Vocabulary(default.tokenizer)
    settings = default.settings(prune=(5, 2), distinct=True)
    sampler = Sampler(default.model, features, settings, default.tokenizer.end_id)
    asked = Constraints(include=("dog",), ban=("man", "a"))
    found = constrained_captions(sampler, asked, vocabulary)
    assert found.per_image == 2
    for tokens in found.result.tokens.tolist():
        words = default.tokenizer.decode(tokens).split()
        assert "dog" in words and not {"man", "a"} & set(words)


def test_infilling_is_not_pruned(photos):
    default = Captioner.from_pretrained()
    features, end = default.features(photos[:1]), default.tokenizer.end_id
    template = parse_template("a ___ in front of ___", default.tokenizer)
    plain, pruned = (
        infill(default.model, features, template, default.settings(prune=prune), end, None, None)
        for prune in ((), (2, 1))
    )
    assert plain.result.tokens.tolist() == pruned.result.tokens.tolist() and pruned.row == plain.row


@pytest.mark.parametrize("prune", [(3, 2), (5, 5, 2)])
def test_both_runtimes_caption_alike(photos, prune):
    light, torch_ = (
        Captioner.from_pretrained(runtime=runtime, precision="float32") for runtime in ("onnx", "torch")
    )
    for photo in photos[:3]:
        ours, theirs = light(photo, prune=prune)[0], torch_(photo, prune=prune)[0]
        assert ours.text == theirs.text
        assert caption_drafts(light, photo, prune=prune)[0].text == ours.text
    assert len(caption_drafts(light, photos[0], prune=prune)) == 4


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prune": [2, 3]}, r"prune=\[2, 3\]: a candidate that was dropped does not come back; give numbers"),
        ({"prune": [3, 0]}, "prune.1=0: input should be greater than or equal to 1"),
        ({"prune": [2], "method": "ancestral"}, r"prune=\[2\]: needs method=best_first and schedule"),
        ({"prune": [2], "schedule": "released"}, r"prune=\[2\]: needs method=best_first and schedule"),
        ({"prune": [2], "block": 4}, r"prune=\[2\] with block=4: candidates are compared by all their words"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(RecipeError, match=message):
        parse_settings(DecodingSettings, given, "decoding")


def test_settings_that_exclude_pruning_switch_it_off(tiny_model_folder, tmp_path):
    Captioner.from_pretrained(tiny_model_folder).save(tmp_path / "model", prune=(3, 2), candidates=4)
    pruned = Captioner.from_pretrained(tmp_path / "model")
    assert pruned.settings().prune == (3, 2)
    for changes in ({"method": "ancestral"}, {"schedule": "released"}, {"block": 4}):
        assert pruned.settings(**changes).prune == ()
    with pytest.raises(RecipeError, match="needs method=best_first"):
        pruned.settings(method="ancestral", prune=[2])
