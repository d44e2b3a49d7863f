import json

import numpy as np
import pytest

from ddcap.errors import DataError
from ddcap.evaluation.bootstrap import bootstrap_interval
from ddcap.evaluation.comparison import compare


@pytest.fixture
def write(tmp_path):
    """Writes a result with the given scores per image and changes; gives its path."""

    def writer(name, cider, images=None, **changes):
        images = images or [str(number) for number in range(len(cider))]
        content = {
            "metrics": {"CIDEr": float(np.mean(cider)), "BLEU-4": 20.0 + len(name)},
            "per_image": {"image_ids": images, "CIDEr": list(map(float, cider))},
            "split": "val",
            "references": "r",
            "tokenization": "ptb-python",
            "idf": {"digest": "d", "source": "all images"},
            **changes,
        }
        path = tmp_path / name
        path.write_text(json.dumps(content))
        return path

    return writer


SCORES = np.random.default_rng(0).normal(50, 40, size=300)


def test_pairing_finds_what_two_intervals_would_not(write):
    better = SCORES + np.random.default_rng(1).normal(1, 3, size=300)
    row = compare(write("a", SCORES), write("b", better)).differences["CIDEr"]
    assert row.first == pytest.approx(SCORES.mean()) and row.second == pytest.approx(better.mean())
    assert row.interval == bootstrap_interval(better - SCORES)
    assert 0 < row.interval[0] < row.second - row.first < row.interval[1] and row.excludes_zero
    (low_a, high_a), (low_b, high_b) = bootstrap_interval(SCORES), bootstrap_interval(better)
    assert low_b < high_a and low_a < high_b


def test_a_worse_one_and_chance(write):
    a, b = write("a", SCORES), write("b", SCORES - 2 - SCORES % 1)
    assert compare(a, b).differences["CIDEr"].excludes_zero
    assert compare(a, b).differences["CIDEr"].interval[1] < 0
    shuffled = write("c", SCORES + np.random.default_rng(2).normal(0, 30, size=300))
    row = compare(a, shuffled).differences["CIDEr"]
    assert row.interval[0] < 0 < row.interval[1] and row.excludes_zero is False


def test_images_are_paired_by_their_id(write):
    one = write("a", [1, 2, 3, 4], ["w", "x", "y", "z"])
    two = write("b", [30, 10, 20], ["y", "q", "x"])
    found = compare(one, two)
    row = found.differences["CIDEr"]
    assert found.images == 2
    assert (row.first, row.second) == (2.5, 25)
    assert "BLEU-4" not in found.differences  # its value is of other images


def test_a_metric_that_is_no_mean_has_no_interval(write):
    found = compare(write("a", SCORES), write("bcd", SCORES + 1))
    row = found.differences["BLEU-4"]
    assert (row.first, row.second, row.interval, row.excludes_zero) == (21, 23, None, None)
    rows = found.to_dict()["metrics"]
    assert rows["BLEU-4"]["interval_95"] is None and rows["CIDEr"]["difference"] == 1
    assert rows["CIDEr"]["interval_95"] == [1, 1] and rows["CIDEr"]["excludes_zero"] is True
    text = found.to_text()
    assert "[+1.00, +1.00] differs" in text and "300 common images" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "different split (val, test)"),
        ({"references": "s"}, "different references"),
        ({"tokenization": "ptb-java"}, "different tokenisation (ptb-python, ptb-java)"),
        ({"idf": {"digest": "e", "source": "ten images"}}, "(idf) (all images, ten images)"),
        ({"clip": "other"}, "different CLIPs (mine, other)"),
        ({"per_image": {"image_ids": ["no", "one"], "CIDEr": [1, 2]}}, "no image is in both"),
    ],
)
def test_what_cannot_be_compared(changes, words, write):
    one, two = write("a", SCORES, clip="mine"), write("b", SCORES, **changes)
    with pytest.raises(DataError) as caught:
        compare(one, two)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{one} and {two}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "not valid JSON"),
        ("[1]", "is no evaluation"),
        ('{"metrics": {"CIDEr": 1}}', "has no 'per_image'"),
    ],
)
def test_another_file_is_refused(text, words, write, tmp_path):
    path = tmp_path / "other.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        compare(write("a", SCORES), path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


@pytest.mark.parametrize(
    "per_image", [{"image_ids": ["1"], "CIDEr": [1, 2]}, {"image_ids": ["1"], "CIDEr": ["x"]}]
)
def test_damaged_scores_are_refused(per_image, write):
    with pytest.raises(DataError, match="its scores are damaged"):
        compare(write("a", SCORES), write("b", SCORES, per_image=per_image))
