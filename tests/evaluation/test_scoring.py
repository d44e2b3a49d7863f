import hashlib
import json
from pathlib import Path

import pytest

from ddcap.data.records import CaptionedImage
from ddcap.errors import DataError
from ddcap.evaluation.metrics import DocumentFrequencies, score_captions
from ddcap.evaluation.result import diagnose, save_evaluation
from ddcap.evaluation.run import ScoringSettings, load_predictions, score_predictions

pytest.importorskip("pycocoevalcap")
FAST = ScoringSettings(tokenization="ptb-python", fast=True)

TEXTS = {
    "dog": ("A brown dog runs on the beach .", "The dog runs along the water .", "a dog at the sea"),
    "cat": ("A cat sleeps on a sofa .", "Two cats , one asleep on a couch", "a sleeping cat"),
    "cup": ("A cup of coffee on a table .", "coffee in a cup", "hot coffee on the table"),
    "boat": ("A boat on the water .", "the boat of a fisher", "a fisher in a boat"),
}
RECORDS = [CaptionedImage(image, Path(f"{image}.jpg"), "val", texts) for image, texts in TEXTS.items()]
PREDICTIONS = {
    "dog": "a dog runs on the beach",
    "cat": "a cat on a couch",
    "cup": "a cup on the table",
    "boat": "a boat",
}


def without_chair(scores):
    """The scores that `score_captions` gives, too."""
    return {name: score for name, score in scores.items() if not name.startswith("CHAIR")}


def test_a_whole_split_is_scored_like_its_captions():
    evaluation = score_predictions(PREDICTIONS, RECORDS, FAST)
    expected = score_captions(PREDICTIONS, TEXTS, "ptb-python")
    assert without_chair(evaluation.scores.metrics) == expected.metrics
    assert without_chair(evaluation.scores.per_image) == expected.per_image
    assert (evaluation.split, evaluation.split_images) == ("val", 4)
    assert evaluation.scores.not_run == {}


def test_a_part_has_the_document_frequencies_of_the_split_and_says_so():
    some = {image: PREDICTIONS[image] for image in ("cat", "dog")}
    whole, part = score_predictions(PREDICTIONS, RECORDS, FAST), score_predictions(some, RECORDS, FAST)
    of_whole = dict(zip(whole.scores.image_ids, whole.scores.per_image["CIDEr"], strict=True))
    assert part.scores.per_image["CIDEr"] == [of_whole["cat"], of_whole["dog"]]
    assert part.scores.document_frequencies.digest == whole.scores.document_frequencies.digest
    assert part.to_dict()["idf"]["images"] == 4
    text = part.to_text()
    assert "2 of the 4 images of split val" in text and "idf from all 4 images of split val" in text


def test_given_document_frequencies_are_used():
    frequencies = DocumentFrequencies.count({"1": ["a dog"], "2": ["a cat"], "3": ["the sea"]}, "elsewhere")
    given = ScoringSettings("ptb-python", frequencies, fast=True)
    evaluation = score_predictions(PREDICTIONS, RECORDS, given)
    expected = score_captions(PREDICTIONS, TEXTS, "ptb-python", document_frequencies=frequencies)
    assert without_chair(evaluation.scores.metrics) == expected.metrics
    assert expected.metrics["CIDEr"] != score_captions(PREDICTIONS, TEXTS, "ptb-python").metrics["CIDEr"]
    assert "idf from elsewhere" in evaluation.to_text()


def test_people_and_model_are_judged_by_the_same_references():
    human = score_predictions(PREDICTIONS, RECORDS, FAST).human
    frequencies = score_predictions(PREDICTIONS, RECORDS, FAST).scores.document_frequencies
    held_out = {"dog": 0, "cat": 1, "cup": 2, "boat": 0}
    people = {image: TEXTS[image][place] for image, place in held_out.items()}
    rest = {
        image: [text for other, text in enumerate(TEXTS[image]) if other != place]
        for image, place in held_out.items()
    }
    for found, captions in ((human.scores, people), (human.model, PREDICTIONS)):
        expected = score_captions(captions, rest, "ptb-python", document_frequencies=frequencies)
        assert without_chair(found.metrics) == expected.metrics
    assert human.references == (2, 2)
    assert human.diagnostics.mean_length == pytest.approx((7 + 7 + 5 + 5) / 4)


def test_the_human_caption_of_an_image_does_not_depend_on_the_part():
    whole = score_predictions(PREDICTIONS, RECORDS, FAST).human.scores
    part = score_predictions({"cup": "a cup"}, RECORDS, FAST).human.scores
    of_whole = dict(zip(whole.image_ids, whole.per_image["ROUGE-L"], strict=True))
    assert part.per_image["ROUGE-L"] == [of_whole["cup"]]


def test_people_are_left_out_where_they_are_not_asked_for():
    quiet = ScoringSettings("ptb-python", fast=True, human=False)
    assert score_predictions(PREDICTIONS, RECORDS, quiet).human is None


def test_json_keys_stay_the_same():
    """Keys are an interface: other programs and comparisons look for them."""
    settings = {"method": "best_first", "steps": 4}
    evaluation = score_predictions(
        {image: PREDICTIONS[image] for image in ("dog", "cup")}, RECORDS, FAST, decoding=settings
    )
    scores, human = evaluation.scores, evaluation.human
    lines = [json.dumps([image, list(TEXTS[image])]) for image in sorted(TEXTS)]
    assert (
        evaluation.to_dict()
        == {
            "metrics": scores.rounded(),
            "intervals_95": scores.rounded_intervals(),
            "not_run": {},
            "human": {
                "metrics": human.scores.rounded(),
                "intervals_95": human.scores.rounded_intervals(),
                "model_with_the_same_references": human.model.rounded(),
                "references": [2, 2],
                "images": 2,
                "not_run": {},
                "diagnostics": diagnose(
                    [TEXTS["dog"][0], TEXTS["cup"][2]]
                ).to_dict(),  # numbers 0 and 2 of the split
                "inventions": human.inventions.to_dict(),
            },
            "diagnostics": diagnose([PREDICTIONS["dog"], PREDICTIONS["cup"]]).to_dict(),
            "inventions": evaluation.inventions.to_dict(),
            "images": 2,
            "failed": {},
            "split": "val",
            "split_images": 4,
            "tokenization": "ptb-python",
            "idf": scores.document_frequencies.summary(),
            "references": hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16],
            "clip": None,
            "decoding": settings,
        }
    )
    assert human.model.metrics != human.scores.metrics != scores.metrics


def test_text_report_shows_every_metric():
    evaluation = score_predictions(PREDICTIONS, RECORDS, FAST)
    scores, human = evaluation.scores, evaluation.human
    head, *lines = evaluation.to_text().splitlines()
    assert head.split() == ["score", "95", "%", "interval", "human", "alike"]
    for line, (name, value) in zip(lines, scores.metrics.items(), strict=False):
        ends = scores.intervals.get(name)
        interval = [] if ends is None else [f"[{ends[0]:.1f},", f"{ends[1]:.1f}]"]
        others = [f"{part.metrics[name]:.1f}" for part in (human.scores, human.model)]
        assert line.split() == [name, f"{value:.1f}", *interval, *others]
    assert lines[len(scores.metrics)].startswith("4 images of split val, tokenised by ptb-python; ")
    assert "against its other 2; alike: the model against the same 2" in evaluation.to_text()


def test_one_image_and_unequal_numbers_of_references():
    alone = score_predictions({"dog": "a dog"}, RECORDS[:1], FAST)
    assert (alone.split, alone.split_images) == ("val", 1)
    records = [*RECORDS[:3], CaptionedImage("boat", Path("boat.jpg"), "val", TEXTS["boat"][:2])]
    evaluation = score_predictions(PREDICTIONS, records, FAST)
    assert evaluation.human.references == (1, 2)
    assert "against its other 1 to 2; alike: the model against the same 1 to 2" in evaluation.to_text()


def test_single_references_leave_no_human():
    records = [CaptionedImage(image, Path("x"), "val", texts[:1]) for image, texts in TEXTS.items()]
    evaluation = score_predictions(PREDICTIONS, records, FAST)
    assert evaluation.human is None and evaluation.to_dict()["human"] is None
    assert "human" not in evaluation.to_text()


def test_copies_are_counted_against_the_training_captions():
    evaluation = score_predictions(PREDICTIONS, RECORDS, FAST, training_captions=["A boat ."])
    assert evaluation.diagnostics.copied == 0.25
    assert evaluation.human.diagnostics.copied == 0


# as METEOR's program answers: each caption with its counts; then with a score of each, and one of all
METEOR = """
import sys
for line in sys.stdin:
    words = line.rstrip().split(" ||| ")
    if words[0] == "SCORE":
        print("1.0 2.0", flush=True)
    else:
        print(*[0.25] * len(words[1:]), 0.5, sep="\\n", flush=True)
"""


def test_meteor_is_that_of_all_images_and_spice_says_why_not(fake_java):
    fake_java(METEOR)
    evaluation = score_predictions(PREDICTIONS, RECORDS, ScoringSettings("ptb-python"))
    assert evaluation.scores.metrics["METEOR"] == evaluation.human.scores.metrics["METEOR"] == 50
    assert "METEOR" not in evaluation.scores.intervals  # it is no mean over images
    assert list(evaluation.scores.not_run) == ["SPICE"]
    assert "CoreNLP" in evaluation.to_dict()["not_run"]["SPICE"]
    assert "SPICE        not run: needs CoreNLP 3.6.0" in evaluation.to_text()


def test_spice_is_told_where_corenlp_is(tmp_path, fake_java):
    fake_java("import sys; sys.exit('METEOR has its own test')")
    evaluation = score_predictions(PREDICTIONS, RECORDS, ScoringSettings("ptb-python", corenlp=tmp_path))
    assert evaluation.scores.not_run["SPICE"].startswith(f"{tmp_path}: has no ")


def test_a_failing_metric_leaves_the_others(fake_java):
    fake_java("import sys; sys.exit('no JVM found')")
    evaluation = score_predictions(PREDICTIONS, RECORDS, ScoringSettings("ptb-python"))
    expected = score_captions(PREDICTIONS, TEXTS, "ptb-python")
    assert without_chair(evaluation.scores.metrics) == expected.metrics
    assert evaluation.scores.not_run["METEOR"].startswith("METEOR's Java program failed (no JVM found)")
    assert evaluation.scores.not_run.keys() == {"METEOR", "SPICE"}


def test_without_java_all_that_can_be_is_scored(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    evaluation = score_predictions(PREDICTIONS, RECORDS)
    assert evaluation.scores.tokenization == "ptb-python"
    expected = score_captions(PREDICTIONS, TEXTS, "ptb-python")
    assert without_chair(evaluation.scores.metrics) == expected.metrics
    for name in ("METEOR", "SPICE"):
        assert "run: apt install default-jre-headless" in evaluation.scores.not_run[name]


def test_the_file_keeps_predictions_and_scores_per_image(tmp_path):
    evaluation = score_predictions(PREDICTIONS, RECORDS, FAST, failed={"ship": "ship.jpg: no such file"})
    save_evaluation(evaluation, tmp_path / "result.json")
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept.pop("predictions") == PREDICTIONS
    assert kept.pop("weights") == evaluation.scores.weights
    assert kept.pop("per_image") == {"image_ids": list(PREDICTIONS), **evaluation.scores.per_image}
    assert kept == json.loads(json.dumps(evaluation.to_dict()))
    own = {"CIDEr", "ROUGE-L", "CHAIR-s", "CHAIR-i"}
    assert kept["metrics"].keys() == own | {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"}
    assert kept["intervals_95"].keys() == own
    assert kept["failed"] == {"ship": "ship.jpg: no such file"}
    assert "not captioned: ship.jpg: no such file" in evaluation.to_text()


def test_a_prediction_of_no_image_of_the_split():
    with pytest.raises(DataError, match=r"^image 'ship' has a prediction but no reference captions"):
        score_predictions({"ship": "a ship"}, RECORDS, FAST)


def test_predictions_are_read(tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text('[{"image_id": 7, "caption": "a dog"}, {"image_id": "x", "caption": "", "score": 1}]')
    assert load_predictions(path) == {"7": "a dog", "x": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("[", "not valid JSON"),
        ("{}", "is not a list; give a list of"),
        ('[{"image_id": 1}]', "entry 0 has no image_id or no caption"),
        ('[{"image_id": 1, "caption": 7}]', "entry 0 has no image_id or no caption"),
        ('[{"image_id": 1, "caption": ""}, {"caption": "a"}]', "entry 1 has no image_id or no caption"),
        ('["a dog"]', "entry 0 has no image_id or no caption"),
        (
            '[{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]',
            "image '1' has two captions",
        ),
    ],
)
def test_another_file_is_refused(text, words, tmp_path):
    path = tmp_path / "predictions.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_predictions(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
