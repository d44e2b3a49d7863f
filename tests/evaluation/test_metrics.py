import json
import shutil
from pathlib import Path

import pytest

from ddcap.data.records import load_karpathy
from ddcap.errors import DataError, DDCapError
from ddcap.evaluation.metrics import (
    DocumentFrequencies,
    MetricScore,
    Scores,
    bootstrap_interval,
    score_captions,
)
from ddcap.evaluation.result import leave_one_out

FLICKR8K = Path(__file__).parents[3] / "shared" / "data" / "flickr8k"

pytest.importorskip("pycocoevalcap")
needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="java is not on the path: pycocoevalcap's own tokenizer cannot run"
)
NAMES = {"CIDEr", "ROUGE-L", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"}

REFERENCES = {
    "dog": ("A brown dog runs on the beach .", "The dog's running along the water", "a dog at the sea"),
    "cat": ("A cat sleeps on a sofa .", "Two cats , one asleep (on a couch)"),
    "cup": ("A cup of coffee on a table .", "coffee isn't cold in a cup"),
    "empty": ("A rocket stands before the start .", "a white rocket"),
}
PREDICTIONS = {
    "cup": "a cup of coffee on the table",
    "dog": "a dog runs on the beach",
    "empty": "",
    "cat": "A dog (asleep) on a couch .",
}


def direct(predictions, references):
    """pycocoevalcap as its own readme calls it."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truth = {image: [{"caption": text} for text in references[image]] for image in predictions}
    guess = {image: [{"caption": text}] for image, text in predictions.items()}
    truth, guess = PTBTokenizer().tokenize(truth), PTBTokenizer().tokenize(guess)
    metrics, each = {}, {}
    metrics["CIDEr"], each["CIDEr"] = Cider().compute_score(truth, guess)
    metrics["ROUGE-L"], each["ROUGE-L"] = Rouge().compute_score(truth, guess)
    bleu, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    metrics.update({f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)})
    return metrics, {name: dict(zip(truth, values, strict=True)) for name, values in each.items()}


@needs_java
def test_scores_are_100_times_those_of_pycocoevalcap():
    scores = score_captions(PREDICTIONS, REFERENCES)
    metrics, each = direct(PREDICTIONS, REFERENCES)
    assert set(scores.metrics) == set(metrics) == NAMES
    assert scores.metrics == pytest.approx({name: 100 * value for name, value in metrics.items()})
    assert scores.tokenization == "ptb-java"
    for name, values in scores.per_image.items():
        expected = {image: 100 * value for image, value in each[name].items()}
        assert dict(zip(scores.image_ids, values, strict=True)) == pytest.approx(expected)


@needs_java
def test_both_tokenisations_give_the_same_scores(captions_json):
    entries = json.loads(captions_json.read_text())["images"]
    texts = {entry["filename"]: [sentence["raw"] for sentence in entry["sentences"]] for entry in entries}
    predictions = {image: captions[0] for image, captions in texts.items()}
    references = {image: captions[1:] for image, captions in texts.items()}
    java, python = (score_captions(predictions, references, how) for how in ("ptb-java", "ptb-python"))
    assert java.metrics == python.metrics and java.per_image == python.per_image
    assert java.metrics["CIDEr"] > 0
    assert (java.tokenization, python.tokenization) == ("ptb-java", "ptb-python")


@needs_java
@pytest.mark.skipif(not FLICKR8K.exists(), reason="Flickr8k's captions are not at ../shared/data/flickr8k")
def test_both_tokenisations_give_the_same_scores_on_flickr8k():
    """On every eighth image; that all captions get the same words, `test_tokenization.py` tests."""
    records = load_karpathy(FLICKR8K / "dataset_flickr8k.json", FLICKR8K / "images")[::8]
    people, rest = leave_one_out({record.image_id: record.captions for record in records})
    assert len(people) > 980
    java, python = (score_captions(people, rest, how).metrics for how in ("ptb-java", "ptb-python"))
    assert set(java) == NAMES and 70 < java["CIDEr"] < 110
    assert python == pytest.approx(java, abs=1e-3)


def test_other_metrics_join_in_and_a_failing_one_leaves_the_rest():
    def words(captions, references):
        assert captions["dog"] == "a dog runs on the beach"
        assert references["cat"][1] == "two cats one asleep -lrb- on a couch -rrb-"
        each = [len(caption.split()) / 100 for caption in captions.values()]
        return {"words": MetricScore(sum(each) / len(each), each)}

    def broken(captions, references):
        raise DDCapError(f"cannot score {len(captions)} of {len(references)}")

    scores = score_captions(
        PREDICTIONS,
        REFERENCES,
        "ptb-python",
        others={"broken": broken, "words": words},
    )
    assert scores.not_run == {"broken": "cannot score 4 of 4"}
    assert scores.per_image["words"] == pytest.approx([7, 6, 0, 8])
    assert scores.metrics["words"] == pytest.approx(5.25)
    assert scores.intervals.keys() == {"CIDEr", "ROUGE-L", "words"}
    assert set(scores.metrics) == NAMES | {"words"}


@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, RuntimeError, AssertionError])
def test_a_mistake_in_a_metrics_code_surfaces(error):
    def wrong(*_):
        raise error("of the programmer")

    with pytest.raises(error, match="of the programmer"):
        score_captions(PREDICTIONS, REFERENCES, "ptb-python", others={"wrong": wrong})


def test_scores_per_image_average_to_the_mean():
    scores = score_captions(PREDICTIONS, REFERENCES, "ptb-python")
    assert scores.image_ids == list(PREDICTIONS)
    assert set(scores.per_image) == {"CIDEr", "ROUGE-L"}
    for name, values in scores.per_image.items():
        assert len(values) == len(PREDICTIONS)
        assert sum(values) / len(values) == pytest.approx(scores.metrics[name])


def test_scores_per_image_belong_to_their_image():
    scores = score_captions(PREDICTIONS, REFERENCES, "ptb-python")
    rouge = dict(zip(scores.image_ids, scores.per_image["ROUGE-L"], strict=True))
    assert rouge["empty"] == 0 and scores.per_image["CIDEr"][scores.image_ids.index("empty")] == 0
    assert rouge["cup"] > rouge["cat"] > 0
    for image in PREDICTIONS:
        alone = score_captions({image: PREDICTIONS[image]}, REFERENCES, "ptb-python")
        assert alone.metrics["ROUGE-L"] == pytest.approx(rouge[image])


def test_a_recited_reference_is_perfect_and_nonsense_is_worthless():
    recited = {image: captions[0] for image, captions in REFERENCES.items()}
    perfect = score_captions(recited, REFERENCES, "ptb-python").metrics
    assert all(perfect[name] == pytest.approx(100, abs=0.01) for name in NAMES - {"CIDEr"})
    assert perfect["CIDEr"] > 100
    nonsense = score_captions(dict.fromkeys(REFERENCES, "zzz"), REFERENCES, "ptb-python").metrics
    assert all(value == pytest.approx(0, abs=0.01) for value in nonsense.values())


def test_scores_are_written_with_three_decimals_and_intervals_with_two():
    values = [12.34567, 45.6789, 78.9123, 3.14159]
    frequencies = DocumentFrequencies.count({"1": ["a dog"]}, "one image")
    metrics = {"CIDEr": 35.0196, "BLEU-4": 20.98765}
    scores = Scores(metrics, {"CIDEr": values}, list("abcd"), "ptb-python", frequencies)
    assert scores.rounded() == {"CIDEr": 35.02, "BLEU-4": 20.988}
    low, high = bootstrap_interval(values)
    assert scores.rounded_intervals() == {"CIDEr": [float(f"{low:.2f}"), float(f"{high:.2f}")]}
    assert scores.rounded_intervals()["CIDEr"] != [float(f"{low:.3f}"), float(f"{high:.3f}")]


def test_case_and_punctuation_do_not_count():
    shouted = {image: f"{text.upper()} !" for image, text in PREDICTIONS.items()}
    for how in ["ptb-python"] + ["ptb-java"] * (shutil.which("java") is not None):
        plain, loud = (score_captions(texts, REFERENCES, how) for texts in (PREDICTIONS, shouted))
        assert plain.metrics == loud.metrics


def test_references_of_other_images_change_nothing():
    few = {image: PREDICTIONS[image] for image in ("cup", "dog", "cat")}
    scores = score_captions(few, REFERENCES, "ptb-python")
    assert scores.metrics == score_captions(few, {i: REFERENCES[i] for i in few}, "ptb-python").metrics


def test_scoring_keeps_the_terminal_quiet(capfd):
    score_captions(PREDICTIONS, REFERENCES)
    assert capfd.readouterr() == ("", "")


def test_missing_references_name_the_image():
    for references in ({"dog": REFERENCES["dog"]}, {**REFERENCES, "cup": ()}):
        with pytest.raises(DataError, match=r"^image 'cup' has a prediction but no reference captions; "):
            score_captions(PREDICTIONS, references)


def test_nothing_to_score():
    with pytest.raises(DataError, match=r"there are no predictions"):
        score_captions({}, REFERENCES)


def test_one_tokenisation_serves_both_sides():
    # the two make different words of these, so a mixture would not be perfect
    captions = {"cup": "half ½ cup of tea", "mail": "mail to a@b.com and http://x.com"}
    for how in ["ptb-python"] + ["ptb-java"] * (shutil.which("java") is not None):
        scores = score_captions(captions, {image: [text] for image, text in captions.items()}, how)
        assert scores.metrics["BLEU-4"] == pytest.approx(100, abs=0.01)
        assert scores.tokenization == how
