import hashlib
import json
import math
from collections import Counter

import pytest

from ddcap.errors import DataError
from ddcap.evaluation.metrics import DocumentFrequencies, score_captions, score_tokenized

cider = pytest.importorskip("pycocoevalcap.cider.cider")

REFERENCES = {
    "dog": ["a brown dog runs on the beach", "the dog runs along the water", "a dog at the sea"],
    "cat": ["a cat sleeps on a sofa", "two cats one asleep on a couch"],
    "cup": ["a cup of coffee on a table", "coffee in a cup"],
    "boat": ["a boat on the water", "the boat of a fisher"],
}
CAPTIONS = {
    "cup": "a cup of coffee on the table",
    "dog": "a dog runs on the beach",
    "cat": "a dog asleep on a couch",
    "boat": "a boat on the sea",
}


@pytest.fixture(scope="module")
def frequencies():
    return DocumentFrequencies.count(REFERENCES, "four images")


def test_images_are_counted_not_captions(frequencies):
    assert frequencies.images == 4
    assert frequencies.counts["a",] == 4
    assert frequencies.counts["dog",] == 1
    assert frequencies.counts["the", "water"] == 2
    assert frequencies.counts["on", "a"] == 2
    assert frequencies.counts["never", "seen"] == 0


def test_the_frequencies_of_all_images_give_pycocoevalcaps_own_scores(frequencies):
    expected, each = cider.Cider().compute_score(
        {image: REFERENCES[image] for image in CAPTIONS}, {image: [text] for image, text in CAPTIONS.items()}
    )
    for given in (frequencies, None):
        scores = score_tokenized(CAPTIONS, REFERENCES, "ptb-python", document_frequencies=given)
        assert scores.metrics["CIDEr"] == 100 * expected
        assert scores.per_image["CIDEr"] == [100 * value for value in each]


def test_a_part_scores_as_it_does_in_the_whole(frequencies):
    whole = score_tokenized(CAPTIONS, REFERENCES, "ptb-python")
    some = {image: CAPTIONS[image] for image in ("cat", "dog")}
    part = score_tokenized(some, REFERENCES, "ptb-python", document_frequencies=frequencies)
    of_whole = dict(zip(whole.image_ids, whole.per_image["CIDEr"], strict=True))
    assert part.per_image["CIDEr"] == [of_whole["cat"], of_whole["dog"]]
    alone = score_tokenized(some, REFERENCES, "ptb-python")
    assert not math.isclose(part.metrics["CIDEr"], alone.metrics["CIDEr"], rel_tol=0.05)


def test_scoring_leaves_the_frequencies_alone(frequencies):
    before = dict(frequencies.counts)
    score_captions({"dog": "a zebra in the zoo"}, REFERENCES, "ptb-python", document_frequencies=frequencies)
    assert frequencies.counts == before


def test_frequencies_survive_saving_and_loading(frequencies, tmp_path):
    path = tmp_path / "idf.json"
    frequencies.save(path)
    loaded = DocumentFrequencies.load(path)
    assert (loaded.counts, loaded.images, loaded.source) == (
        frequencies.counts,
        frequencies.images,
        frequencies.source,
    )
    assert loaded.digest == frequencies.digest
    assert json.loads(path.read_text())["document_frequencies"]["a dog at the"] == 1


def test_the_digest_tells_frequencies_apart_by_their_counts(frequencies):
    again = DocumentFrequencies.count(dict(reversed(REFERENCES.items())), "another name")
    assert again.digest == frequencies.digest
    some = {image: REFERENCES[image] for image in ("dog", "cat")}
    assert DocumentFrequencies.count(some, "two").digest != frequencies.digest
    more = DocumentFrequencies.count({**REFERENCES, "blank": [""]}, "a fifth image without words")
    assert more.counts == frequencies.counts and more.digest != frequencies.digest


def test_the_digest_is_that_of_files_written_before():
    """Results are compared by it, also with those of earlier versions."""
    counts = Counter({("a",): 3, ("a", "dog"): 2, ("the", "sea"): 1})
    frequencies = DocumentFrequencies(counts, 4, "four images")
    text = "4\na\t3\na dog\t2\nthe sea\t1"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert frequencies.digest == digest
    assert frequencies.summary() == {"source": "four images", "images": 4, "digest": digest}


def test_frequencies_without_a_name_are_named_by_their_path(frequencies, tmp_path):
    path = tmp_path / "idf.json"
    frequencies.save(path)
    content = json.loads(path.read_text())
    del content["source"]
    path.write_text(json.dumps(content))
    assert DocumentFrequencies.load(path).source == str(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": 0},
        {"images": "2"},
        {"images": True},
        {"document_frequencies": {"a": 0}},
        {"document_frequencies": {"a": 1.5}},
        {"document_frequencies": ["a"]},
    ],
)
def test_impossible_counts_are_refused(frequencies, tmp_path, changes):
    path = tmp_path / "idf.json"
    frequencies.save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match="its counts are damaged"):
        DocumentFrequencies.load(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "contains no document frequencies; give a file written with --save-idf"),
        ('{"format": "ddcap document frequencies", "version": 9}', "version 9, but this ddcap reads 1"),
        ('{"format": "ddcap document frequencies", "version": 1, "images": 2}', "its counts are damaged"),
        (
            '{"format": "ddcap document frequencies", "version": 1, "images": 2, '
            '"document_frequencies": {"a": "b"}}',
            "its counts are damaged",
        ),
    ],
)
def test_another_file_is_refused(text, words, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        DocumentFrequencies.load(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


def test_a_missing_file_and_a_missing_folder(frequencies, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot be read"):
        DocumentFrequencies.load(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be written"):
        frequencies.save(tmp_path / "no" / "folder.json")
