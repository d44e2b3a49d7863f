import pytest

from ddcap.evaluation.result import diagnose

CAPTIONS = ["A dog runs.", "", "a a dog", "a dog and a dog", "Two people , one hat"]


def test_diagnostics_count_every_property():
    found = diagnose(CAPTIONS, ["a dog runs", "two people"])
    assert found.captions == 5
    assert found.lengths == {0: 1, 3: 2, 4: 1, 5: 1}
    assert found.mean_length == 3.0
    assert found.distinct_words == len({"a", "dog", "runs", "and", "two", "people", "one", "hat"})
    assert found.copied == pytest.approx(1 / 5)
    assert found.empty == pytest.approx(1 / 5)
    assert found.repeated_word == pytest.approx(1 / 5)
    assert found.repeated_bigram == pytest.approx(1 / 5)


def test_copying_is_of_words_not_of_letters():
    assert diagnose(["A DOG runs !"], ["a dog runs ."]).copied == 1
    assert diagnose(["a dog run"], ["a dog runs"]).copied == 0
    assert diagnose(["a dog"], []).copied is None


def test_plain_values_and_one_line():
    found = diagnose(CAPTIONS, ["a dog runs"])
    assert found.to_dict() == {
        "mean_length": 3.0,
        "lengths": {"0": 1, "3": 2, "4": 1, "5": 1},
        "distinct_words": 8,
        "copied_from_training": 0.2,
        "empty": 0.2,
        "repeated_word": 0.2,
        "repeated_bigram": 0.2,
        "slips": found.slips.to_dict(),
    }
    assert found.slips.any == pytest.approx(2 / 5)  # "a a dog", "a dog and a dog"
    line = found.to_text()
    assert "(0 ▄  █▄▄ 5)" in line and "20.0% copied from training" in line and "\n" not in line
    assert "copied" not in diagnose(CAPTIONS).to_text()


def test_shares_are_rounded_to_a_hundredth_of_a_percent():
    found = diagnose(["a a", "a dog a dog", "", "a dog", "two cats", "", "a"], ["two cats"]).to_dict()
    assert found.pop("slips")["no_noun"] == 0.2857  # "a a", "a"
    lengths = {"0": 2, "1": 1, "2": 3, "4": 1}
    one_in_seven = dict.fromkeys(["copied_from_training", "repeated_word", "repeated_bigram"], 0.1429)
    plain = {"mean_length": 1.57, "lengths": lengths, "distinct_words": 4, "empty": 0.2857}
    assert found == {**plain, **one_in_seven}


def test_the_bars_begin_at_the_shortest():
    assert diagnose(["one two", "one two three", "one two"]).to_text().startswith("2.3 words (2 █▄ 3), 3 ")
