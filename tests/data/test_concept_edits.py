import pytest

from ddcap.data.concepts import NO_CONCEPT, ConceptEdits, ConceptVocabulary, stack_concepts
from ddcap.errors import DDCapError

VOCABULARY = ConceptVocabulary(["cat", "dog", "window", "tree"], {"cats": "cat"})
SEEN = stack_concepts([[(1, 0.8), (3, 0.4)], [(0, 0.3)]], 3)


def edited(words):
    tokens = ConceptEdits.parse(words, VOCABULARY).apply(SEEN)
    return [
        {VOCABULARY.words[i]: round(c, 2) for i, c in zip(ids, shares, strict=True) if i != NO_CONCEPT}
        for ids, shares in zip(tokens.ids.tolist(), tokens.confidences.tolist(), strict=True)
    ]


def test_plain_words_replace_the_concepts():
    assert edited("Cats, window") == [{"cat": 0.95, "window": 0.95}] * 2
    assert edited(["tree"]) == [{"tree": 0.95}] * 2
    assert edited("") == [{}, {}]


def test_signed_words_add_and_remove_concepts():
    assert edited("+cat, -dog") == [{"cat": 0.95, "tree": 0.4}, {"cat": 0.95}]
    assert edited("-tree") == [{"dog": 0.8}, {"cat": 0.3}]
    assert edited("+cat,+window") == [
        {"cat": 0.95, "window": 0.95, "dog": 0.8},
        {"cat": 0.95, "window": 0.95},
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("cta", "does not know 'cta'; did you mean cat"),
        ("xylophone", "use a common noun"),
        ("+cat, dog", "'dog' has no sign but '\\+cat' has"),
    ],
)
def test_impossible_edits_are_one_line(words, reason):
    with pytest.raises(DDCapError, match=reason):
        ConceptEdits.parse(words, VOCABULARY)


def test_a_model_without_concepts_says_so():
    with pytest.raises(DDCapError, match="this model sees none"):
        ConceptEdits.parse("cat", None)
