"""What the tagger does not see speaks against its words: rates, weights, and the choice among candidates."""

import dataclasses

import numpy as np
import pytest
import torch

from ddcap.data.concepts import (
    NO_CONCEPT,
    ConceptRates,
    ConceptSpelling,
    ConceptTokens,
    ConceptVocabulary,
)
from ddcap.decoding.generate import generate
from ddcap.decoding.predictor import ConceptEvidence
from ddcap.errors import CheckpointError, DDCapError, RecipeError
from ddcap.settings import DecodingSettings, parse_settings

WORDS = ("dog", "ball", "man", "snow")
FORMS = {"dogs": "dog", "men": "man", "snowy": "snow"}
RATES = ConceptRates.of([0.3, 0.1, 0.4, 0.2], [0.02, 0.1, 0.05, 0.15])
SEEN = ConceptTokens(
    torch.tensor([[0, 1], [3, NO_CONCEPT]]), torch.tensor([[0.9, 0.4], [0.1, 0.0]], dtype=torch.float32)
)


@pytest.fixture(scope="module")
def vocabulary():
    return ConceptVocabulary(WORDS, FORMS, RATES)


@pytest.fixture(scope="module")
def spelling(vocabulary, tiny_tokenizer):
    return ConceptSpelling.of(vocabulary, tiny_tokenizer)


def evidence(spelling, seen=SEEN, **changes):
    mask_id = len(spelling.continues) - 2
    return ConceptEvidence.of(seen, spelling, mask_id=mask_id, **changes)


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_absence_is_the_log_ratio_to_the_prior_and_at_most_zero(spelling, library):
    seen = SEEN if library == "torch" else ConceptTokens(SEEN.ids.numpy(), SEEN.confidences.numpy())
    found = np.asarray(evidence(spelling, seen, absence=0.5).against)
    # the first image lists dog and ball, surer than usual; the second lists snow, less sure than usual
    expected = [
        [0, 0, np.log(0.05 / 0.4), np.log(0.15 / 0.2)],
        [np.log(0.02 / 0.3), 0, np.log(0.05 / 0.4), np.log(0.1 / 0.2)],
    ]
    np.testing.assert_allclose(found, 0.5 * np.array(expected), rtol=1e-5)


def test_absence_lowers_words_of_one_token_everywhere(spelling, tiny_tokenizer):
    plain, absent = (evidence(spelling, bonus=2.0, absence=weight) for weight in (0.0, 1.0))
    nothing = torch.full((2, 5), tiny_tokenizer.vocabulary_size)
    difference = absent.log_probability(nothing) - plain.log_probability(nothing)
    for form, concept in {**dict(zip(WORDS, range(4), strict=True)), "dogs": 0, "men": 2}.items():
        ids = tiny_tokenizer.encode_part(form)
        if len(ids) == 1:
            torch.testing.assert_close(difference[:, ids[0]], absent.against[:, concept])
    assert (difference <= 0).all() and (difference < 0).any()


def test_naming_an_absent_concept_lowers_a_candidates_score(spelling, tiny_tokenizer):
    there, missing = (tiny_tokenizer.encode_part(text) for text in ("dog", "man"))
    longest = max(len(there), len(missing))
    rows = torch.tensor([ids + [tiny_tokenizer.end_id] * (longest - len(ids)) for ids in (there, missing)])
    first = ConceptTokens(SEEN.ids[[0, 0]], SEEN.confidences[[0, 0]])
    found = evidence(spelling, first, absence=1.0).said(rows)
    torch.testing.assert_close(found, torch.tensor([0.9, np.log(0.05 / 0.4)], dtype=torch.float32))


def test_rates_are_those_of_a_plain_count():
    ids = np.array([[0, 1], [0, NO_CONCEPT], [2, 1]])
    named = np.array([[1, 0, 0.5], [0.5, 0, 0.5], [0, 1, 0]], dtype=np.float32)
    found = ConceptRates.measure(ids, named)
    prior = (named.sum(axis=0) + 0.01) / 4
    np.testing.assert_allclose(found.prior, prior, rtol=1e-6)
    # concept 2 is unlisted in the first two images, which name it half the time
    assert found.unlisted[2] == pytest.approx(min(prior[2], (1.0 + 20 * prior[2]) / 22))
    assert (found.unlisted <= found.prior).all()


def test_rates_are_stored_with_the_concepts(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = ConceptVocabulary.load(tmp_path)
    np.testing.assert_allclose(loaded.rates.prior, RATES.prior, rtol=0.02)
    np.testing.assert_allclose(loaded.rates.unlisted, RATES.unlisted, rtol=0.02)
    ConceptVocabulary(WORDS, FORMS).save(tmp_path)
    assert ConceptVocabulary.load(tmp_path).rates is None
    text = (tmp_path / "concepts.json").read_text()
    (tmp_path / "concepts.json").write_text(text[:-1] + ', "rates": {"prior": [0], "unlisted": [1]}}')
    with pytest.raises(CheckpointError, match="damaged"):
        ConceptVocabulary.load(tmp_path)


@pytest.fixture(scope="module")
def seeing(model_with_concepts, tiny_tokenizer, vocabulary):
    return model_with_concepts(vocabulary, tiny_tokenizer)


def test_a_strong_weight_keeps_absent_words_out(seeing, features, tiny_tokenizer):
    seen = ConceptTokens(torch.full((3, 2), NO_CONCEPT), torch.zeros(3, 2))
    features = dataclasses.replace(features, concepts=seen)

    def captions(**changes):
        settings = DecodingSettings(guidance=1.0, length=8, temperature=1.0, candidates=4, **changes)
        result = generate(seeing, features, settings, 0, generator=np.random.default_rng(0))
        return [set(row) for row in result.tokens.tolist()]

    banned = {ids[0] for form in (*WORDS, *FORMS) if len(ids := tiny_tokenizer.encode_part(form)) == 1}
    banned -= {ids[0] for form in ("ball",) if len(ids := tiny_tokenizer.encode_part(form)) == 1}
    assert banned and not any(row & banned for row in captions(absence=1000.0))
    assert captions(absence=0.0) == captions()


def test_absence_without_rates_or_concepts_is_refused(tiny_model, tiny_tokenizer):
    bare = ConceptSpelling.of(ConceptVocabulary(WORDS, FORMS), tiny_tokenizer)
    with pytest.raises(DDCapError, match=r"absence=0\.5: the rates of this model"):
        evidence(bare, absence=0.5)
    settings = parse_settings(DecodingSettings, {"absence": 0.5}, "x")
    with pytest.raises(ValueError, match=r"absence=0\.5: this model sees no concepts"):
        settings.check_model(tiny_model.config.model, sees_concepts=False)
    with pytest.raises(RecipeError, match="absence=-1"):
        parse_settings(DecodingSettings, {"absence": -1}, "x")
