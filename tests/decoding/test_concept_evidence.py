"""Concepts have their say: in each step against a plain loop, and in what is kept at the end."""

import dataclasses

import numpy as np
import pytest
import torch

from ddcap.data.concepts import NO_CONCEPT, ConceptSpelling, ConceptTokens, ConceptVocabulary
from ddcap.decoding.generate import generate
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.predictor import ConceptEvidence
from ddcap.errors import RecipeError
from ddcap.model.loading import build_model
from ddcap.settings import DecodingSettings, parse_settings

WORDS = ("dog", "ball", "man", "snow")
FORMS = {"dogs": "dog", "men": "man", "snowy": "snow"}


@pytest.fixture(scope="module")
def vocabulary():
    return ConceptVocabulary(WORDS, FORMS)


@pytest.fixture(scope="module")
def seen():
    """Of three images."""
    ids = torch.tensor([[0, 1], [3, NO_CONCEPT], [2, 0]])
    return ConceptTokens(ids, torch.tensor([[0.9, 0.4], [0.6, 0.5], [0.3, 0.2]]))


@pytest.fixture(params=["diffusion", "autoregressive"])
def seeing(request, config, tiny_tokenizer, vocabulary):
    """A random model of either kind that sees concepts."""
    model, decoding = dataclasses.replace(config.model, length_prediction=False), config.decoding
    if request.param == "autoregressive":
        model = dataclasses.replace(model, kind="autoregressive", concentrated_attention=False)
        decoding = DecodingSettings(method="left_to_right", guidance=1.0)
    config = dataclasses.replace(
        config,
        model=model,
        decoding=decoding,
        concepts=len(WORDS),
        vocabulary_size=tiny_tokenizer.vocabulary_size,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_model(config).eval()
    made.set_vocabulary(vocabulary, tiny_tokenizer)
    return made


def settings_of(model, **changes):
    if model.kind == "autoregressive":
        return dataclasses.replace(model.config.decoding, **changes)
    return DecodingSettings(**{"guidance": 1.0, "length": 8, **changes})


def test_bonuses_and_penalties_go_to_the_right_words(vocabulary, seen, tiny_tokenizer):
    mask = tiny_tokenizer.vocabulary_size
    texts = ["a dog", "a man", "two dogs play", "snowy", "a", "the men"]
    rows = [tiny_tokenizer.encode_part(text) for text in texts]
    longest = max(map(len, rows)) + 1
    tokens = torch.tensor([row + [tiny_tokenizer.end_id] * (longest - len(row)) for row in rows])
    spelling = ConceptSpelling.of(vocabulary, tiny_tokenizer)
    evidence = ConceptEvidence.of(seen, spelling, mask, bonus=3.0, repeat_penalty=1.5).repeat(2)
    added = evidence.log_probability(tokens)
    assert added.shape == (6, mask)
    in_numpy = ConceptTokens(seen.ids.numpy(), seen.confidences.numpy())
    same = ConceptEvidence.of(in_numpy, spelling, mask, bonus=3.0, repeat_penalty=1.5).repeat(2)
    np.testing.assert_allclose(same.log_probability(tokens.numpy()), added.numpy(), rtol=1e-6)
    np.testing.assert_allclose(same.said(tokens.numpy()), evidence.said(tokens).numpy(), rtol=1e-6)
    for row, text in enumerate(texts):
        image, named = row // 2, {WORDS[number] for number in vocabulary.find(text)}
        confidences = {
            WORDS[number]: confidence
            for number, confidence in zip(
                seen.ids[image].tolist(), seen.confidences[image].tolist(), strict=True
            )
            if number != NO_CONCEPT
        }
        gain, loss = torch.zeros(mask), torch.zeros(mask)
        for form in [*WORDS, *FORMS]:
            word, ids = FORMS.get(form, form), tiny_tokenizer.encode_part(form)
            if word not in named:
                gain[ids[0]] = max(float(gain[ids[0]]), 3.0 * confidences.get(word, 0.0))
            elif len(ids) == 1:
                loss[ids[0]] = 1.5
        torch.testing.assert_close(added[row], gain - loss)
        said = sum(confidences.get(word, 0.0) for word in named)
        assert float(evidence.said(tokens)[row]) == pytest.approx(said)
    assert float(added.max()) == pytest.approx(2.7)
    assert float(added.min()) < 0 or not bool(spelling.is_one_token.any())


def test_a_strong_bonus_writes_the_word_once_a_caption(seeing, features, seen, tiny_tokenizer, vocabulary):
    features = dataclasses.replace(features, concepts=seen)
    end = tiny_tokenizer.end_id

    def captions(**changes):
        result = generate(seeing, features, settings_of(seeing, **changes), end)
        return [vocabulary.find(tiny_tokenizer.decode(ids)) for ids in result.tokens.tolist()]

    whole = [number for number, word in enumerate(WORDS) if len(tiny_tokenizer.encode_part(word)) == 1]
    assert whole
    for with_bonus, row in zip(captions(concept_bonus=200.0), seen.ids.tolist(), strict=True):
        assert {number for number in row if number in whole} <= set(with_bonus)
    assert captions() != captions(concept_bonus=200.0)


def test_concepts_that_are_named_are_kept(seeing, features, seen, tiny_tokenizer):
    changes = {"beams": 4} if seeing.kind == "autoregressive" else {"candidates": 5, "length": 6}
    features, end = dataclasses.replace(features, concepts=seen), tiny_tokenizer.end_id
    asked = {"concept_bonus": 12.0, **changes}
    spelling = ConceptSpelling.of(seeing.vocabulary, tiny_tokenizer)
    evidence = ConceptEvidence.of(seen, spelling, seeing.mask_id)
    plain, weighed = (
        evidence.said(generate(seeing, features, settings_of(seeing, **asked, **more), end).until(end))
        for more in ({}, {"concept_weight": 1000.0})
    )
    assert bool((weighed >= plain).all())


def test_words_of_a_template_count_as_named(seeing, features, seen, tiny_tokenizer):
    one = dataclasses.replace(
        features,
        memory=features.memory[:1],
        summary=features.summary[:1],
        concepts=ConceptTokens(seen.ids[:1], seen.confidences[:1]),
    )
    word = next(word for word in ("dog", "ball") if len(tiny_tokenizer.encode_part(word)) == 1)
    settings = settings_of(seeing, concept_bonus=200.0)
    for given, wanted in (("a", True), (word, False)):
        template = parse_template(f"[1] {given}", tiny_tokenizer)
        filled = infill(seeing, one, template, settings, tiny_tokenizer.end_id)
        text = tiny_tokenizer.decode(filled.result.tokens[filled.row].tolist())
        assert (text.split()[0] == word) is wanted or len(tiny_tokenizer.encode_part("dog")) > 1


def test_a_model_without_concepts_refuses(config):
    for name in ("concept_bonus", "repeat_penalty", "concept_weight"):
        settings = parse_settings(DecodingSettings, {name: 0.5}, "decoding")
        with pytest.raises(ValueError, match=rf"{name}=0\.5: this model sees no concepts; set it to 0"):
            settings.check_model(config.model, sees_concepts=False)
        settings.check_model(config.model, sees_concepts=True)
    with pytest.raises(RecipeError, match="concept_bonus"):
        parse_settings(DecodingSettings, {"concept_bonus": -1}, "decoding")
