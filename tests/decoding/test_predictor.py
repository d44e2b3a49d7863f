import math

import numpy as np
import pytest
import torch
from whole_pass import diffusion_pass

from ddcap.decoding.predictor import Predictor
from ddcap.model.ddcap import TorchSteps
from ddcap.model.features import ImageFeatures
from ddcap.model.guidance import guide


def softmax_log(logits):
    total = sum(math.exp(value) for value in logits)
    return [value - math.log(total) for value in logits]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.17, 3.0])
def test_equations_7_and_8_in_plain_loops(scale):
    generator = torch.Generator().manual_seed(0)
    image, image_free = (2 * torch.randn(3, 4, 6, generator=generator) for _ in range(2))
    found = guide(image, image_free, scale).log_softmax(dim=2)
    assert np.allclose(guide(image.numpy(), image_free.numpy(), scale), guide(image, image_free, scale))
    for b in range(3):
        for i in range(4):
            with_image, without = softmax_log(image[b, i].tolist()), softmax_log(image_free[b, i].tolist())
            mixed = [f + scale * (y - f) for y, f in zip(with_image, without, strict=True)]
            assert found[b, i].tolist() == pytest.approx(softmax_log(mixed), abs=1e-5)


TOKENS = [[0, -1, 5, -1, 7, 2], [-1, -1, 4, 2, 0, 0], [3, 9, -1, -1, -1, 2]]
LENGTHS = torch.tensor([6, 4, 6])
TIMESTEP = torch.tensor([7, 3, 0])


@pytest.fixture(scope="module")
def tokens(tiny_model):
    tokens = torch.tensor(TOKENS)
    return tokens.masked_fill(tokens == -1, tiny_model.mask_id)


def keys_values_of(model, features):
    with torch.no_grad():
        return model.project_memory(features)


def log_probabilities(model, tokens, features, use_image=None):
    with torch.no_grad():
        output = diffusion_pass(model, tokens, TIMESTEP, LENGTHS, features, use_image=use_image)
        return output.logits.log_softmax(dim=2)


def predict(model, tokens, keys_values, scale, lengths=LENGTHS, timestep=TIMESTEP, **more):
    steps = TorchSteps(model, keys_values, with_image_free=scale != 1)
    return Predictor(steps, lengths, scale, **more).log_probabilities(tokens, timestep)


def test_scale_one_is_no_guidance(tiny_model, features, tokens):
    keys_values = keys_values_of(tiny_model, features)
    expected = log_probabilities(tiny_model, tokens, features)
    torch.testing.assert_close(predict(tiny_model, tokens, keys_values, 1), expected, rtol=1e-5, atol=1e-5)
    almost_one = predict(tiny_model, tokens, keys_values, 1 + 1e-9)  # computes both branches
    torch.testing.assert_close(almost_one, expected, rtol=1e-4, atol=1e-4)


def test_scale_zero_is_the_image_free_model(tiny_model, features, tokens):
    keys_values = keys_values_of(tiny_model, features)
    expected = log_probabilities(tiny_model, tokens, features, use_image=torch.zeros(3, dtype=torch.bool))
    torch.testing.assert_close(predict(tiny_model, tokens, keys_values, 0), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, log_probabilities(tiny_model, tokens, features), atol=0.01)


@pytest.mark.parametrize("scale", [1.17, 2.0])
def test_one_doubled_batch_equals_two_passes(tiny_model, features, tokens, scale):
    keys_values = keys_values_of(tiny_model, features)
    image = log_probabilities(tiny_model, tokens, features)
    image_free = log_probabilities(tiny_model, tokens, features, use_image=torch.zeros(3, dtype=torch.bool))
    expected = (image_free + scale * (image - image_free)).log_softmax(dim=2)
    found = predict(tiny_model, tokens, keys_values, scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 1.5])
def test_captions_of_one_image_side_by_side(tiny_model, features, tokens, scale):
    two = ImageFeatures(features.memory[:2], features.summary[:2])
    captions = tokens.repeat(2, 1)
    lengths, timestep = LENGTHS.repeat(2), TIMESTEP.repeat(2)
    found = predict(tiny_model, captions, keys_values_of(tiny_model, two), scale, lengths, timestep)
    for image in range(2):
        one = ImageFeatures(features.memory[[image] * 3], features.summary[[image] * 3])
        expected = predict(tiny_model, tokens, keys_values_of(tiny_model, one), scale)
        torch.testing.assert_close(found[3 * image : 3 * image + 3], expected, rtol=1e-4, atol=1e-4)


def test_predictions_are_normalised(tiny_model, features, tokens):
    found = predict(tiny_model, tokens, keys_values_of(tiny_model, features), 2.0)
    torch.testing.assert_close(found.exp().sum(dim=2), torch.ones(3, 6))


@pytest.mark.parametrize("scale", [1, 1.5])
def test_probability_of_a_barred_token_goes_to_the_others(tiny_model, features, tokens, scale):
    keys_values = keys_values_of(tiny_model, features)
    expected = predict(tiny_model, tokens, keys_values, scale).exp()
    expected[..., 3] = 0
    found = predict(tiny_model, tokens, keys_values, scale, barred=3).exp()
    torch.testing.assert_close(found, expected / expected.sum(dim=2, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 1.5])
def test_the_choice_is_the_likeliest_of_the_distribution(tiny_model, features, tokens, scale):
    positions = torch.tensor([[1, 3], [0, 1], [2, 4]])
    steps = TorchSteps(tiny_model, keys_values_of(tiny_model, features), with_image_free=scale != 1)
    predictor = Predictor(steps, LENGTHS, scale, barred=7)
    chosen, log_probability = predictor.likeliest(tokens, TIMESTEP, positions)
    whole = predictor.log_probabilities(tokens, TIMESTEP).gather(
        1, positions.unsqueeze(2).expand(-1, -1, tiny_model.mask_id)
    )
    assert torch.equal(chosen, whole.argmax(dim=2))
    torch.testing.assert_close(log_probability, whole.amax(dim=2), rtol=1e-4, atol=1e-4)
