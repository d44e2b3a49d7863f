"""Decoding by a model that is told its predictions of the step before."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from ddcap.decoding.generate import generate
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.predictor import Predictor
from ddcap.decoding.schedulers.best_first import plan_steps
from ddcap.decoding.scoring import sampler_log_likelihood
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings

WAYS = [
    {},
    {"guidance": 1.0},
    {"steps": 3, "distinct": True},
    {"candidates": 3},
    {"order": "margin"},
    {"temperature": 1.0},
    {"method": "ancestral"},
]
DRAWN = WAYS[-2:]


def conditioned(model, spread):
    settings = dataclasses.replace(model.config.model, self_conditioning=True)
    told = DDCapModel(dataclasses.replace(model.config, model=settings), copy.deepcopy(model.encoder))
    with torch.no_grad():
        told.load_state_dict(model.state_dict(), strict=False)
        torch.nn.init.normal_(told.denoiser.guess_projection, std=spread, generator=seed())
    return told.eval()


def seed():
    return torch.Generator().manual_seed(3)


@pytest.fixture(scope="module")
def told(tiny_model):
    return conditioned(tiny_model, 0.5)


def made(model, features, changes):
    return generate(model, features, DecodingSettings(**changes), 0, generator=np.random.default_rng(1))


@pytest.mark.parametrize("changes", WAYS)
def test_self_conditioning_counts_only_once_it_is_learned(tiny_model, told, features, changes):
    plain = made(tiny_model, features, changes)
    start = made(conditioned(tiny_model, 0.0), features, changes)
    assert torch.equal(plain.tokens, start.tokens) and torch.equal(plain.confidences, start.confidences)
    found = made(told, features, changes)
    assert torch.equal(found.tokens, made(told, features, changes).tokens)  # same seed, same caption
    assert not torch.equal(found.confidences, plain.confidences)
    assert (found.tokens != told.mask_id).all()
    if "candidates" in changes:
        return  # others may be kept
    # nothing is told at the first step
    torch.testing.assert_close(found.step_confidences[0], plain.step_confidences[0])


@pytest.mark.parametrize("changes", [one for one in WAYS if one not in DRAWN])
def test_a_batch_is_its_images_one_by_one(told, features, changes):
    together = made(told, features, changes)
    for image in range(features.images):
        one = ImageFeatures(features.memory[image : image + 1], features.summary[image : image + 1])
        alone = made(told, one, changes)
        length = int(alone.lengths[0])
        assert together.lengths[image] == length
        assert torch.equal(together.tokens[image, :length], alone.tokens[0])


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_steps_are_those_of_a_plain_loop(told, features, scale):
    """Both branches are told what the guided prediction was, at MASK only, from the second step on."""
    length = 6
    result = made(told, features, {"length": length, "guidance": scale})
    steps = told.denoising_steps(features, with_image_free=scale != 1)
    lengths = torch.full((features.images,), length)
    everywhere = torch.arange(length).expand(features.images, length)
    guess = None
    for number, timestep in enumerate(result.timesteps):
        now = result.history[number]
        logits, free = steps.logits(now, timestep, lengths, everywhere, guess)
        if free is not None:
            one, other = logits.log_softmax(dim=2), free.log_softmax(dim=2)
            logits = other + scale * (one - other)
        is_new = (now == told.mask_id) & (result.history[number + 1] != told.mask_id)
        guess = logits.argmax(dim=2)
        assert torch.equal(guess[is_new], result.tokens[is_new])


def test_given_words_stay_and_blanks_are_filled(told, features, tiny_tokenizer):
    one = ImageFeatures(features.memory[:1], features.summary[:1])
    template = parse_template("a ___ cat [2] dark", tiny_tokenizer)
    found = infill(told, one, template, DecodingSettings(), tiny_tokenizer.end_id, tokenizer=tiny_tokenizer)
    again = infill(told, one, template, DecodingSettings(), tiny_tokenizer.end_id, tokenizer=tiny_tokenizer)
    text = tiny_tokenizer.decode(found.result.tokens[found.row].tolist())
    assert text.startswith("a") and text.endswith("dark") and "cat" in text
    assert torch.equal(found.result.tokens, again.result.tokens)


@pytest.mark.parametrize("order", ["probability", "margin"])
def test_likelihood_equals_the_samplers_score(told, features, order):
    settings = {"length": 6, "guidance": 1.0, "steps": 3, "order": order}
    result = made(told, features, settings)
    predictor = Predictor(told.denoising_steps(features, with_image_free=False), result.lengths)
    plan = plan_steps(result.lengths, result.lengths, told.config.diffusion.steps, 3)
    found = sampler_log_likelihood(predictor, result.tokens, plan, told.mask_id, order=order)
    torch.testing.assert_close(found, result.confidences.log().sum(dim=1), rtol=1e-4, atol=1e-4)
