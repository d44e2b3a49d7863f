"""Concepts found in tokens are those found in the text."""

import json

import numpy as np
import pytest
import torch

from ddcap.data.concepts import LONGEST, ConceptSpelling, ConceptVocabulary

WORDS = ("dog", "ball", "run", "man", "xylophonist")
FORMS = {"dogs": "dog", "running": "run", "men": "man", "balls": "ball"}


@pytest.fixture(scope="module")
def vocabulary():
    return ConceptVocabulary(WORDS, FORMS)


@pytest.fixture(scope="module")
def spelling(vocabulary, tiny_tokenizer):
    return ConceptSpelling.of(vocabulary, tiny_tokenizer)


def tokens_of(tokenizer, text):
    ids = tokenizer.encode(text)
    return np.array([ids])


def found(spelling, tokens, tokenizer):
    named = spelling.named(tokens, tokenizer.vocabulary_size)[0]
    in_torch = spelling.like(torch.empty(0)).named(torch.from_numpy(tokens), tokenizer.vocabulary_size)[0]
    assert np.array_equal(named, in_torch.numpy())
    return np.flatnonzero(named).tolist()


def test_tokens_name_what_the_text_names(vocabulary, spelling, tiny_tokenizer, captions_json):
    entries = json.loads(captions_json.read_text())["images"]
    captions = [sentence["raw"] for entry in entries for sentence in entry["sentences"]]
    captions += ["Two dogs run after a ball", "men who are running", "a dogged ballet, manned by runners"]
    expected = [
        sorted(set(vocabulary.find(tiny_tokenizer.decode(tiny_tokenizer.encode(text))))) for text in captions
    ]
    known = [
        [number for number in one if len(tiny_tokenizer.encode_part(WORDS[number])) <= LONGEST]
        for one in expected
    ]
    assert [found(spelling, tokens_of(tiny_tokenizer, text), tiny_tokenizer) for text in captions] == known
    assert any(known) and known[-1] == []
    # and all at once, padded by the end token
    rows = [tiny_tokenizer.encode(text) for text in captions]
    longest = max(map(len, rows))
    batch = np.array([row + [tiny_tokenizer.end_id] * (longest - len(row)) for row in rows])
    named = spelling.named(batch, tiny_tokenizer.vocabulary_size)
    assert [np.flatnonzero(row).tolist() for row in named] == known


def test_a_begun_word_is_named_as_long_as_its_rest_may_come(spelling, tiny_tokenizer):
    tokenizer, mask = tiny_tokenizer, tiny_tokenizer.vocabulary_size
    ids = tokenizer.encode_part("running")
    assert len(ids) > 1
    begun = [*tokenizer.encode_part("a"), ids[0]]
    assert 2 in found(spelling, np.array([[*begun, *[mask] * (len(ids) - 1)]]), tokenizer)
    assert 2 not in found(spelling, np.array([[*begun, tokenizer.end_id]]), tokenizer)


def test_a_word_too_long_is_not_recognised(spelling, tiny_tokenizer):
    assert len(tiny_tokenizer.encode_part(WORDS[4])) > LONGEST
    assert 4 not in spelling.concept.tolist()
    assert found(spelling, tokens_of(tiny_tokenizer, "a xylophonist"), tiny_tokenizer) == []


def test_words_of_which_none_can_be_recognised_name_nothing(tiny_tokenizer):
    spelling = ConceptSpelling.of(ConceptVocabulary(WORDS[4:], {}), tiny_tokenizer)
    assert found(spelling, tokens_of(tiny_tokenizer, "a xylophonist"), tiny_tokenizer) == []
