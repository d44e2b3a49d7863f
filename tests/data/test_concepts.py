import json

import numpy as np
import pytest

from ddcap.data.concepts import NO_CONCEPT, ConceptVocabulary, stack_concepts
from ddcap.errors import CheckpointError


@pytest.fixture
def vocabulary():
    return ConceptVocabulary(["cat", "sit", "window"], {"cats": "cat", "sitting": "sit"})


def test_concepts_are_found_in_any_form_once_and_in_the_order_of_the_caption(vocabulary):
    assert vocabulary.find("Sitting cats: a Cat's window, a cat-flap") == [1, 0, 2]
    assert vocabulary.find("nothing here") == []
    assert [vocabulary.number(word) for word in (" Cats", "window", "dog")] == [0, 2, None]
    assert len(vocabulary) == 3


def test_concepts_survive_saving_and_loading(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    again = ConceptVocabulary.load(tmp_path)
    assert (again.words, again.forms) == (vocabulary.words, vocabulary.forms)


@pytest.mark.parametrize(
    "content", [None, "{", '{"words": ["cat"]}', '{"words": ["cat"], "forms": {"x": "y"}}']
)
def test_a_missing_or_damaged_file_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "concepts.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"concepts\.json: (no such file|damaged)"):
        ConceptVocabulary.load(tmp_path)


def test_rows_are_filled_up_and_cut():
    tokens = stack_concepts([[(4, 0.9), (2, 0.5), (1, 0.1)], [], [(7, 0.25)]], 2)
    assert tokens.ids.tolist() == [[4, 2], [NO_CONCEPT] * 2, [7, NO_CONCEPT]]
    assert np.array_equal(tokens.confidences, np.array([[0.9, 0.5], [0, 0], [0.25, 0]], np.float32))


def test_the_recipes_words_and_class_names_fit_each_other():
    from pathlib import Path

    from ddcap.training.tagger import read_class_words

    folder = Path(__file__).parents[2] / "recipes" / "default"
    vocabulary = ConceptVocabulary.load(folder)
    assert len(set(vocabulary.words)) == len(vocabulary)
    assert not set(vocabulary.forms) & set(vocabulary.words)
    rows = read_class_words(folder / "class_words.json", vocabulary)
    listed = json.loads((folder / "class_words.json").read_text())
    assert len(rows) == sum(len(entry["words"]) for entry in listed.values())  # no word is unknown
    assert {number for number, _, _ in rows} <= set(range(1000))
    said = {(number, vocabulary.words[concept]) for number, concept, _ in rows}
    assert {(281, "cat"), (105, "koala"), (779, "bus")} <= said
