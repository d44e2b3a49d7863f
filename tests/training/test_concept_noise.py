"""Tags drawn for text are right as often as they say, and wrong in the way of real ones."""

import numpy as np
import pytest
import torch

from ddcap.errors import CheckpointError
from ddcap.training.tags import ConceptNoise

CONCEPTS, IMAGES, KEPT = 40, 600, 6


@pytest.fixture(scope="module")
def noise():
    """Measured on a made-up tagger: concept n is often mistaken for n + 20, and 0 is never found."""
    generator = torch.Generator().manual_seed(0)
    named = (torch.rand(IMAGES, CONCEPTS, generator=generator) < 0.1).float()
    seen = 0.03 + 0.05 * torch.rand(IMAGES, CONCEPTS, generator=generator)
    seen = torch.where(named > 0, 0.8 * torch.rand(IMAGES, CONCEPTS, generator=generator), seen)
    seen[:, 20:] = torch.maximum(seen[:, 20:], 0.4 * named[:, :20])
    seen[:, 0] = 0
    return ConceptNoise.measure(seen, named, KEPT)


def test_a_confidence_is_how_often_it_is_right(noise):
    generator = np.random.default_rng(0)
    shares, hits = [], []
    for _ in range(4000):
        named = {int(concept): 1.0 for concept in generator.choice(np.arange(1, 40), 12, replace=False)}
        for concept, confidence in noise.draw(named, generator):
            shares.append(confidence)
            hits.append(concept in named)
    shares, hits = np.array(shares), np.array(hits)
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.9)):
        inside = (shares >= low) & (shares < high)
        assert inside.sum() > 500
        assert abs(shares[inside].mean() - hits[inside].mean()) < 0.03


def test_concepts_are_drawn_as_often_and_as_wrong_as_the_taggers(noise):
    assert noise.found[0] < 0.5 * noise.found[1:].mean()
    assert 25 in noise.confused[5, :3]
    generator = np.random.default_rng(1)
    named = dict.fromkeys(range(13), 1.0)
    drawn = [concept for _ in range(3000) for concept, _ in noise.draw(named, generator)]
    counts = np.bincount(drawn, minlength=CONCEPTS)
    assert counts[0] < 0.6 * counts[1:13].mean()
    assert counts[21:33].mean() > 1.1 * counts[33:].mean()


def test_no_concept_is_drawn_twice_and_the_surest_come_first(noise):
    generator = np.random.default_rng(2)
    for _ in range(200):
        tags = noise.draw({3: 0.2, 7: 1.0, 9: 0.4}, generator)
        assert len({concept for concept, _ in tags}) == len(tags) <= KEPT
        confidences = [confidence for _, confidence in tags]
        assert confidences == sorted(confidences, reverse=True)
    assert noise.draw({}, generator) is not None  # a caption without any concept has mistakes only


def test_concept_noise_survives_saving_and_loading(noise, tmp_path):
    noise.save(tmp_path)
    again = ConceptNoise.load(tmp_path)
    np.testing.assert_array_equal(again.confused, noise.confused)
    np.testing.assert_allclose(again.confidences, noise.confidences, atol=1e-3)
    (tmp_path / "concept_noise.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="train the tagger again"):
        ConceptNoise.load(tmp_path)
