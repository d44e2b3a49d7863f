import json

import numpy as np
import pytest

from ddcap.errors import DataError
from ddcap.evaluation.comparison import Comparison, Difference, compare
from ddcap.evaluation.metrics import bootstrap_interval


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


def test_pairing_finds_differences_that_two_intervals_hide(write):
    better = SCORES + np.random.default_rng(1).normal(1, 3, size=300)
    row = compare(write("a", SCORES), write("b", better)).differences["CIDEr"]
    assert row.first == pytest.approx(SCORES.mean()) and row.second == pytest.approx(better.mean())
    assert row.interval == bootstrap_interval(better - SCORES)
    assert 0 < row.interval[0] < row.second - row.first < row.interval[1] and row.excludes_zero
    (low_a, high_a), (low_b, high_b) = bootstrap_interval(SCORES), bootstrap_interval(better)
    assert low_b < high_a and low_a < high_b


def test_a_worse_result_and_one_of_chance(write):
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
    ("interval", "excludes"),
    [
        ((0.2, 0.9), True),
        ((-0.9, -0.2), True),
        ((-0.2, 0.9), False),
        ((-0.9, 0.2), False),
        ((0.0, 0.9), False),
        ((-0.9, 0.0), False),
        ((0.0, 0.0), False),
    ],
)
def test_an_interval_excludes_zero_where_it_lies_on_one_side(interval, excludes):
    assert Difference(30.0, 31.0, interval).excludes_zero is excludes


def test_an_evaluation_does_not_differ_from_itself(write):
    row = compare(write("a", SCORES), write("b", SCORES)).differences["CIDEr"]
    assert row.first == row.second and row.interval == (0, 0) and row.excludes_zero is False


def test_comparison_is_written_in_full_and_printed_rounded():
    rows = {
        "CIDEr": Difference(50.12345, 52.45678, (-0.98765, 4.56789)),
        "ROUGE-L": Difference(40.25, 38.0, (-3.14159, -1.41421)),
        "BLEU-4": Difference(20.98765, 10.0, None),
    }
    found = Comparison(7, rows)
    assert found.to_dict() == {
        "images": 7,
        "metrics": {
            "CIDEr": {
                "first": 50.123,
                "second": 52.457,
                "difference": 2.333,
                "interval_95": [-0.988, 4.568],
                "excludes_zero": False,
            },
            "ROUGE-L": {
                "first": 40.25,
                "second": 38.0,
                "difference": -2.25,
                "interval_95": [-3.142, -1.414],
                "excludes_zero": True,
            },
            "BLEU-4": {
                "first": 20.988,
                "second": 10.0,
                "difference": -10.988,
                "interval_95": None,
                "excludes_zero": None,
            },
        },
    }
    lines = [line.split() for line in found.to_text().splitlines()]
    assert lines[1:4] == [
        ["CIDEr", "50.1", "52.5", "+2.33", "[-0.99,", "+4.57]", "may", "be", "chance"],
        ["ROUGE-L", "40.2", "38.0", "-2.25", "[-3.14,", "-1.41]", "differs"],
        ["BLEU-4", "21.0", "10.0", "-10.99"],
    ]


@pytest.mark.parametrize("order", [1, -1])
def test_only_common_metrics_are_compared(write, order):
    """Metrics of the first alone are passed over; one that is no mean needs the very same images."""
    per_image = {"image_ids": ["x", "y"], "CIDEr": [1.0, 2.0], "ROUGE-L": [5.0, 6.0]}
    metrics = {"SPICE": 3.0, "CIDEr": 1.5, "ROUGE-L": 5.5, "BLEU-4": 9.0}
    pair = [
        write("a", [1, 2], ["x", "y"], metrics=metrics, per_image=per_image),
        write("b", [2, 4], ["x", "y"]),
    ]
    found = compare(*pair[::order]).differences
    assert list(found) == ["CIDEr", "BLEU-4"]
    assert (found["CIDEr"].first, found["CIDEr"].second) == ((1.5, 3.0) if order == 1 else (3.0, 1.5))
    more = [pair[1], write("c", [1, 2, 3], ["x", "y", "z"])]
    assert list(compare(*more[::order]).differences) == ["CIDEr"]


def test_two_results_with_one_common_image(write):
    one, two = write("a", [3], ["x"]), write("b", [5], ["x"], idf={"digest": "d", "source": "a file"})
    assert compare(one, two).differences["CIDEr"].interval == (2, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "test"}, "different split (val, test)"),
        ({"references": "s"}, "different references"),
        ({"tokenization": "ptb-java"}, "different tokenisation (ptb-python, ptb-java)"),
        ({"idf": {"digest": "e", "source": "ten images"}}, "(idf) (all images, ten images)"),
        ({"clip": "other"}, "different CLIPs (mine, other)"),
        ({"per_image": {"image_ids": ["no", "one"], "CIDEr": [1, 2]}}, "have no image in common"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(changes, words, write):
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
        ("[1]", "is not an evaluation"),
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
    "changes",
    [
        {"per_image": {"image_ids": ["1"], "CIDEr": [1, 2]}},
        {"per_image": {"image_ids": ["1"], "CIDEr": ["x"]}},
        {"per_image": {"image_ids": ["1"], "CIDEr": 7}},
        {"per_image": {"image_ids": "1", "CIDEr": [1]}},
        {"per_image": [1]},
        {"metrics": {"CIDEr": "high"}},
        {"metrics": [50.0]},
        {"idf": {"source": "all images"}},
        {"idf": "d"},
    ],
)
def test_damaged_scores_are_refused(changes, write):
    with pytest.raises(DataError, match="its scores are damaged"):
        compare(write("a", SCORES), write("b", SCORES, **changes))
