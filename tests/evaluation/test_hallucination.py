import json
from pathlib import Path

import pytest

from ddcap.commands import main
from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.records import CaptionedImage
from ddcap.errors import DataError
from ddcap.evaluation.comparison import compare
from ddcap.evaluation.hallucination import KINDS, ThingWords, find_inventions, load_objects, thing_words
from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.evaluation.result import save_evaluation
from ddcap.evaluation.run import ScoringSettings, score_predictions

ROOT = Path(__file__).parents[2]
COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair
drier, toothbrush"""


def named(caption):
    return [mention.things[0] for mention in thing_words().mentions(caption)]


@pytest.mark.parametrize(
    ("caption", "things"),
    [
        ("a hot dog on a plate", ["hot dog"]),
        ("two hot dogs and a hot-dog", ["hot dog", "hot dog"]),
        ("a dog by a traffic light", ["dog", "traffic light"]),
        ("a teddy bear in a bus", ["teddy bear", "bus"]),
        ("a man waits at a bus stop near train tracks", ["person"]),
        ("men , women and children with knives", ["person", "person", "person", "knife"]),
        ("puppies and ponies", ["dog", "horse"]),
        ("a baby elephant and a baby boy", ["elephant", "person"]),
        ("a passenger train and a police car", ["train", "car"]),
        ("an orange cat with oranges", ["cat", "orange"]),
        ("a couple of zebras watched by a couple", ["zebra", "person"]),
        ("people skiing down a ski slope", ["person"]),
        ("a boy looks at the camera", ["person"]),
        ("a girl 's catalogue of carpets", ["person"]),  # no cat, no car, no pets
        ("", []),
    ],
)
def test_things_are_found_in_words(caption, things):
    assert named(caption) == things


def test_an_ambiguous_word_is_right_by_any_of_its_meanings():
    mention = thing_words().mentions("a bike")[0]
    assert mention.things == ("bicycle", "motorcycle") and mention.kind == "vehicles"
    for seen in ("a motorcycle", "a bicycle", "a cyclist"):
        assert find_inventions({"1": "a bike"}, {"1": [seen]}).row().invented == (0,)
    assert find_inventions({"1": "a bike"}, {"1": ["a car"]}).row().invented == (1,)


def test_people_show_what_they_do_not_name():
    found = find_inventions({"1": "a man with a racket"}, {"1": ["playing tennis", "a hand holds a ball"]})
    assert found.row().invented == (0,)
    assert named("playing tennis by hand") == []  # the caption names nothing that way


def test_every_category_of_coco_is_a_thing_of_some_kind():
    kinds = thing_words().kinds
    for category in (" ".join(name.split()) for name in COCO.split(",")):
        assert kinds[category] in KINDS
        assert category in thing_words().labelled(category)
        assert category == "orange" or category in thing_words().shown(category)


def test_the_list_and_the_concepts_of_the_default_know_the_same_animals():
    known = set(ConceptVocabulary.load(ROOT / "recipes" / "default").words)
    animals = [name for name, kind in thing_words().kinds.items() if kind == "animals"]
    assert len(animals) > 30
    assert {name for name in animals if name not in known} <= {"panda", "seal", "insect", "bird", "cow"}


def test_every_phrase_that_is_taken_out_holds_a_thing():
    """Else it does nothing, which a misspelt line would not show."""
    words = thing_words()
    for phrase, things in words._meanings.items():
        if not things:
            parts = [
                phrase[start:end] for start in range(len(phrase)) for end in range(start + 1, len(phrase) + 1)
            ]
            assert any(words._meanings.get(part) for part in parts), phrase


def test_scores_are_per_mention_and_per_caption():
    captions = {"1": "a dog and a cat on a couch", "2": "a man", "3": "nothing here", "4": "a bus and a bus"}
    references = {"1": ["a puppy on a sofa"], "2": ["the sea"], "3": ["a dog"], "4": ["a street"]}
    found = find_inventions(captions, references)
    row = found.row()
    assert row.named == (3, 1, 0, 2) and row.invented == (1, 1, 0, 2)
    assert row.per_mention == pytest.approx(4 / 6) and row.per_caption == pytest.approx(3 / 4)
    assert found.row("animals").per_mention == 1 / 2
    assert found.row("furniture").per_mention == 0
    assert found.row("food").named == (0, 0, 0, 0) and found.row("food").per_mention == 0
    score = row.scores()["CHAIR-i"]
    assert score.value == pytest.approx(
        sum(a * b for a, b in zip(score.per_image, score.weights, strict=True)) / sum(score.weights)
    )


def test_object_labels_count_as_seen():
    captions, references = {"1": "a cat on a table", "2": "a cat"}, {"1": ["a room"], "2": ["a room"]}
    assert find_inventions(captions, references).row().invented == (2, 1)
    found = find_inventions(captions, references, {"1": ["cat", "dining table"], "other": ["cat"]})
    assert found.row().invented == (0, 1) and found.labelled == 1
    assert "object labels of 1 images count too" in found.to_text()


def test_persons_given_and_lost():
    captions = {"1": "a man", "2": "a bed", "3": "a bench", "4": "a ball", "5": "a woman"}
    references = {
        "1": ["an empty room", "a bed"],  # given
        "2": ["a bed", "a pillow"],
        "3": ["a girl on a bench", "a boy"],  # lost
        "4": ["a boy", "a ball", "a ball"],  # one of three: neither
        "5": ["a boy", "a lady"],
    }
    found = find_inventions(captions, references)
    assert found.given_persons == [True, False] and found.lost_persons == [True, False]
    content = found.to_dict()
    assert content["given_persons"]["share"] == content["lost_persons"]["share"] == 0.5
    assert content["lost_persons"] == {
        "images": 2,
        "captions": 1,
        "share": 0.5,
        "interval_95": [0.0, 1.0],
    }
    assert "images without a person given one: 1 of 2, 50.0%" in found.to_text()


def test_no_image_with_or_without_persons():
    only = find_inventions({"1": "a man"}, {"1": ["a boy"]})
    assert only.to_dict()["given_persons"] == {
        "images": 0,
        "captions": 0,
        "share": None,
        "interval_95": None,
    }
    assert "given one: 0 of 0" in only.to_text()


RECORDS = [
    CaptionedImage("1", Path("1.jpg"), "val", ("A dog runs .", "the puppy", "a dog on sand")),
    CaptionedImage("2", Path("2.jpg"), "val", ("A bed in a room .", "an empty room", "a bed")),
    CaptionedImage("3", Path("3.jpg"), "val", ("A man rides a bike .", "a cyclist", "a person")),
]
FAST = ScoringSettings("ptb-python", fast=True)


def test_chair_is_reported_for_model_and_people():
    evaluation = score_predictions({"1": "a dog", "2": "a girl on a bed", "3": "a man"}, RECORDS, FAST)
    assert evaluation.scores.metrics["CHAIR-s"] == pytest.approx(100 / 3)
    assert evaluation.scores.metrics["CHAIR-i"] == pytest.approx(25)
    low, high = evaluation.scores.intervals["CHAIR-i"]
    assert low == 0 < 25 < high
    human = evaluation.human
    assert human.scores.metrics["CHAIR-i"] == 0 and human.model.metrics["CHAIR-i"] == pytest.approx(25)
    text = evaluation.to_text()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert lines["CHAIR-i"][1] == "25.0" and lines["CHAIR-i"][-2:] == ["0.0", "25.0"]
    assert lines["persons"][1:3] == ["1", "2"] and lines["persons"][-1] == "0.0"
    assert "images without a person given one: 1 of 2" in text
    labelled = ScoringSettings("ptb-python", fast=True, objects={"2": ["person"]})
    again = score_predictions({"2": "a girl on a bed"}, RECORDS, labelled)
    assert again.scores.metrics["CHAIR-s"] == 0 == again.human.model.metrics["CHAIR-s"]


def test_the_interval_is_of_the_ratio():
    values, weights = [0.0, 0.5, 1.0, 0.0] * 30, [0.0, 4.0, 1.0, 3.0] * 30
    low, high = bootstrap_interval(values, weights=weights)
    assert low < 3 / 8 < high < 0.55
    assert bootstrap_interval(values, weights=[2.0] * 120) == pytest.approx(bootstrap_interval(values))
    assert bootstrap_interval([0.0, 0.0], weights=[0.0, 0.0]) == (0, 0)


def test_two_results_are_compared_by_the_ratio_too(tmp_path):
    for name, caption in (("one", "a girl on a bed"), ("two", "a bed")):
        save_evaluation(
            score_predictions({"1": "a dog", "2": caption, "3": "a man"}, RECORDS, FAST), tmp_path / name
        )
    row = compare(tmp_path / "one", tmp_path / "two").differences["CHAIR-i"]
    assert (row.first, row.second) == (25, 0)
    assert row.interval[0] < -25 < row.interval[1] == 0
    damaged = json.loads((tmp_path / "two").read_text())
    damaged["weights"]["CHAIR-i"].pop()
    (tmp_path / "two").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="scores are damaged"):
        compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("[]", "is not an object; give an object of image ids"),
        ('{"1": "dog"}', "image '1' has no list of names"),
        ('{"1": ["dog", 2]}', "image '1' has no list of names"),
        ('{"1": ["n02084071"], "2": []}', "none of its names is known, not even 'n02084071'"),
    ],
)
def test_a_file_of_something_else_is_refused(text, words, tmp_path):
    path = tmp_path / "objects.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_objects(path)
    assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)


def test_the_command_reads_the_objects(tmp_path, captions_json, photos, capsys):
    images = [one["filename"] for one in json.loads(captions_json.read_text())["images"]]
    assert images
    data = ["--data", str(captions_json), "--images", str(photos[0].parent), "--split", "train"]
    image = next(
        str(one.get("cocoid", one.get("imgid", one["filename"])))
        for one in json.loads(captions_json.read_text())["images"]
        if one["split"] == "train"
    )
    predictions, objects = tmp_path / "predictions.json", tmp_path / "objects.json"
    predictions.write_text(json.dumps([{"image_id": image, "caption": "a submarine"}]))
    objects.write_text(json.dumps({image: ["boat"]}))
    shown = []
    for extra in ([], ["--objects", str(objects)]):
        assert main(["metrics", str(predictions), *data, "--fast", "--json", *extra]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert [one["metrics"]["CHAIR-s"] for one in shown] == [100, 0]
    assert [one["inventions"]["labelled_images"] for one in shown] == [0, 1]
    objects.write_text("[]")
    assert main(["metrics", str(predictions), *data, "--objects", str(objects)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_words_are_in_the_wheel():
    """A data file that only the source tree has would fail at the user's."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    included = wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    assert "ddcap/evaluation/things.txt" in {file.distribution_path for file in included}


def test_a_custom_list_of_things():
    words = ThingWords("[animals]\nyeti: yeti/yetis, snowman/snowmen\n[nothing]\nyeti: print\n")
    assert [one.words for one in words.mentions("a yeti and two snowmen with a yeti print")] == [
        "yeti",
        "snowmen",
    ]
