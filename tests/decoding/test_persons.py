"""What a detector says of persons while captions are decoded: for or against words, and among candidates."""

import dataclasses

import numpy as np
import pytest
import torch

from ddcap.data.concepts import ConceptEdits, ConceptSpelling, ConceptTokens, ConceptVocabulary
from ddcap.data.persons import Persons
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.caption import PersonsSeen
from ddcap.decoding.generate import generate
from ddcap.decoding.predictor import AMONG_CANDIDATES, ConceptEvidence
from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.features import ImageFeatures
from ddcap.publishing import find_model
from ddcap.settings import DecodingSettings, parse_settings

WORDS = ("dog", "ball", "man", "girl")
FORMS = {"dogs": "dog", "men": "man"}
PERSONS = ("man", "girl")
SEEN = ConceptTokens(torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0.9, 0.4], [0.9, 0.4]]))


def told(*evidence):
    values = torch.tensor(evidence)
    return Persons(values.sigmoid(), values, torch.ones(len(evidence), dtype=torch.long), values.sigmoid())


@pytest.fixture(scope="module")
def tokenizer():
    """The default's: it has a token for each of these words."""
    return CaptionTokenizer.load(find_model("default"))


@pytest.fixture(scope="module")
def vocabulary():
    return ConceptVocabulary(WORDS, FORMS, persons=PERSONS)


@pytest.fixture(scope="module")
def spelling(vocabulary, tokenizer):
    return ConceptSpelling.of(vocabulary, tokenizer)


@pytest.fixture(scope="module")
def tokens_of(tokenizer):
    """The words of one token among those for persons, and among the others."""
    forms = {**dict.fromkeys(WORDS), **FORMS}
    ids = {form: tokenizer.encode_part(form) for form in forms}
    single = {form: own[0] for form, own in ids.items() if len(own) == 1}
    persons = {token for form, token in single.items() if FORMS.get(form, form) in PERSONS}
    return persons, {*single.values()} - persons


def evidence(spelling, weight, *values, seen=SEEN, **changes):
    mask_id = len(spelling.continues) - 2
    return ConceptEvidence.of(
        seen, spelling, mask_id=mask_id, persons=told(*values), persons_weight=weight, **changes
    )


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_evidence_goes_to_words_for_persons_only(spelling, tokens_of, tokenizer, library):
    persons, others = tokens_of
    assert persons and others
    found = evidence(spelling, 2.0, -1.5, 3.0)
    nothing = torch.full((2, 5), tokenizer.vocabulary_size)
    if library == "numpy":
        seen = ConceptTokens(SEEN.ids.numpy(), SEEN.confidences.numpy())
        values = Persons(*(np.asarray(part) for part in vars(told(-1.5, 3.0)).values()))
        mask_id = tokenizer.vocabulary_size
        found = ConceptEvidence.of(seen, spelling, mask_id, persons=values, persons_weight=2.0)
        nothing = nothing.numpy()
    assert found.has_a_say
    added = np.asarray(found.log_probability(nothing))
    expected = np.zeros_like(added)
    expected[:, [*persons]] = [[-3.0], [6.0]]
    np.testing.assert_allclose(added, expected)


def test_evidence_for_persons_ends_when_one_is_named(spelling, tokenizer):
    ((man,), (girl,)) = (tokenizer.encode_part(word) for word in PERSONS)
    begun = torch.full((2, 4), tokenizer.vocabulary_size)
    begun[:, 1] = man
    added = evidence(spelling, 1.0, -1.5, 3.0).log_probability(begun)
    assert added[:, girl].tolist() == [-1.5, 0.0]


def test_a_candidate_that_names_a_person_gains_or_loses_once(spelling, tokenizer):
    rows = [tokenizer.encode_part(text) for text in ("dog", "man girl")]
    longest = max(map(len, rows))
    rows = torch.tensor([ids + [tokenizer.end_id] * (longest - len(ids)) for ids in rows])
    for value in (-1.5, 3.0):
        plain, with_it = (evidence(spelling, weight, value, value).said(rows) for weight in (0.0, 0.5))
        torch.testing.assert_close(with_it - plain, torch.tensor([0.0, 0.5 * AMONG_CANDIDATES * value]))


def test_selected_captions_keep_their_evidence(spelling):
    found = evidence(spelling, 1.0, -1.5, 3.0).repeat(2)
    assert found.persons.tolist() == [-1.5, -1.5, 3.0, 3.0]
    assert found.select(torch.tensor([1, 2])).persons.tolist() == [-1.5, 3.0]


@pytest.fixture(scope="module")
def seeing(model_with_concepts, tokenizer, vocabulary):
    return model_with_concepts(vocabulary, tokenizer)


def test_a_strong_weight_keeps_persons_out_or_brings_them_in(seeing, features, tokens_of):
    persons, _ = tokens_of
    seen = ConceptTokens(torch.full((3, 2), -1), torch.zeros(3, 2))
    plain = dataclasses.replace(features, concepts=seen)
    looked = dataclasses.replace(plain, persons=told(-1.0, 1.0, 0.0))

    def captions(features, **changes):
        settings = DecodingSettings(guidance=1.0, length=8, temperature=1.0, candidates=4, **changes)
        result = generate(seeing, features, settings, 0, generator=np.random.default_rng(0))
        return result.until(0).tolist()

    absent, present, unsure = captions(looked, persons=1000.0)
    assert not {*absent} & persons
    assert {*present} & persons
    assert unsure == captions(plain)[2]
    # a weight of 0, and features without a look at persons, are decoding as it was
    assert captions(looked) == captions(plain) == captions(plain, persons=1000.0)


def test_given_concepts_replace_the_detector(vocabulary):
    features = ImageFeatures(torch.zeros(2, 1, 3), None, SEEN, told(-1.5, 3.0))

    def kept(words):
        return features.edited(ConceptEdits.parse(words, vocabulary)).persons.evidence.tolist()

    assert kept("+ball") == kept("-man") == [-1.5, 3.0]
    assert kept("+man") == kept("dog, ball") == [0.0, 0.0]
    wanted = ConceptEdits.following(vocabulary, wanted=["a man"], banned=[], replaced={})
    assert features.edited(wanted).persons.evidence.tolist() == [0.0, 0.0]
    renamed = ConceptEdits.following(vocabulary, wanted=[], banned=["man"], replaced={"girl": "man"})
    assert features.edited(renamed).persons.evidence.tolist() == [-1.5, 3.0]


def test_words_for_persons_are_stored_with_the_concepts(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    assert ConceptVocabulary.load(tmp_path).persons == PERSONS
    text = (tmp_path / "concepts.json").read_text()
    (tmp_path / "concepts.json").write_text(text.replace('"persons": ["man"', '"persons": ["nobody"'))
    with pytest.raises(CheckpointError, match="damaged"):
        ConceptVocabulary.load(tmp_path)


def test_a_model_without_a_detector_refuses_the_weight(tiny_model):
    settings = parse_settings(DecodingSettings, {"persons": 0.5}, "x")
    with pytest.raises(ValueError, match=r"persons=0\.5: this model has no detector of persons; set it to 0"):
        settings.check_model(tiny_model.config.model, sees_concepts=True)
    settings.check_model(tiny_model.config.model, sees_concepts=True, sees_persons=True)
    with pytest.raises(RecipeError, match="persons=-1"):
        parse_settings(DecodingSettings, {"persons": -1}, "x")


@pytest.mark.parametrize(
    ("count", "centre", "text"),
    [
        (0, 0.5, "none"),
        (1, 0.2, "1, left"),
        (2, 0.5, "2, the largest centre"),
        (7, 1.1, "several, the largest right"),
    ],
)
def test_persons_in_words(count, centre, text):
    persons = Persons(np.array([0.5]), np.array([0.0]), np.array([count]), np.array([centre]))
    assert PersonsSeen.of(persons, 0).text == text
