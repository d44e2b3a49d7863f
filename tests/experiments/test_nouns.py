import json
from pathlib import Path

import pytest

from ddcap.data.records import load_karpathy
from experiments.nouns import agreement, known, main, nouns_of
from experiments.run import load_ablation

PEOPLE = [
    "Two men and a woman stand near a dog .",
    "Some people with a dog on the beach",
    "A person plays with his dogs at a beach",
    "The children watch a skateboarder",
    "Men outside.",
]


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("a black dog runs through the grass", {"dog", "grass"}),
        ("Two dogs play with a ball.", {"dog", "ball"}),
        ("the men and women jump over people", {"man", "woman", "person"}),
        ("children with skis and scarves", {"child", "ski", "scarf"}),
        ("a surfer and a skateboarder", {"surfer", "skateboarder"}),
        ("a dog and a dog", {"dog"}),
        ("", set()),
        (".", set()),
    ],
)
def test_nouns_in_the_singular(caption, nouns):
    assert nouns_of(caption) == nouns


def test_precision_and_recall_by_hand():
    captions = {"x": "a man with a cat on a beach"}  # asked by two people: man, dog, person, beach
    found = agreement(captions, {"x": PEOPLE})
    assert found["precision"] == [pytest.approx(2 / 3)]
    assert found["recall"] == [pytest.approx(2 / 4)]


def test_a_caption_without_nouns_and_people_who_agree_on_none():
    references = {"x": PEOPLE, "y": ["a dog", "two cats"]}
    found = agreement({"x": "it is red", "y": "a cat"}, references)
    assert found["precision"] == [0.0, 1.0]
    assert found["recall"] == [0.0, None] and known(found["recall"]) == [0.0]


def test_every_row_and_people_have_them(finished):
    results = load_ablation(finished[0])
    for row in [*results["rows"].values(), results["human"]]:
        for kind in ("precision", "recall"):
            found = row["nouns"][kind]
            assert 0 <= found["interval_95"][0] <= found["mean"] <= found["interval_95"][1] <= 1
    claim = next(c for c in results["claims"] if (c["better"], c["worse"]) == ("g", "twin"))
    means = [results["rows"][row]["nouns"]["precision"]["mean"] for row in ("g", "twin")]
    assert claim["nouns"]["precision"]["difference"] == pytest.approx(means[0] - means[1])


def test_the_table_can_be_made_from_results_alone(finished, photo_splits, capsys):
    folder = finished[0] / "results"
    files = [str(folder / f"{name}-seed0.json") for name in ("g", "twin")]
    assert main([str(photo_splits), *files]) == 0
    printed = capsys.readouterr().out
    kept = [json.loads((folder / f"nouns-{name}-seed0.json").read_text()) for name in ("g", "twin")]
    for name, one in zip(("g", "twin"), kept, strict=True):
        mean = 100 * sum(one["precision"]) / len(one["precision"])
        assert f"| {name}-seed0 | {mean:.1f} [" in printed


def test_results_of_other_data_are_one_line(finished, photo_splits, captions_json, tmp_path, capsys):
    good = str(finished[0] / "results" / "g-seed0.json")
    assert main([str(captions_json), good]) == 1
    assert "was scored on other data" in capsys.readouterr().err
    assert main([str(photo_splits), str(photo_splits)]) == 1
    assert "holds no predictions" in capsys.readouterr().err
    part = json.loads(Path(good).read_text())
    part["predictions"] = dict(list(part["predictions"].items())[:3])
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps(part))
    assert main([str(photo_splits), good, str(fewer)]) == 1
    message = capsys.readouterr().err
    assert "has other images than" in message and message.count("\n") == 1


def test_results_of_the_first_images_alone_can_be_read(finished, photo_splits, tmp_path, capsys):
    """As `python -m experiments ablate --limit` writes them: their digest is of these images only."""
    from ddcap.evaluation.run import references_digest

    part = json.loads((finished[0] / "results" / "g-seed0.json").read_text())
    part["predictions"] = dict(list(part["predictions"].items())[:3])
    records = load_karpathy(photo_splits, tmp_path, "test")[:3]
    part["references"] = references_digest({one.image_id: one.captions for one in records})
    path = tmp_path / "limited.json"
    path.write_text(json.dumps(part))
    assert main([str(photo_splits), str(path)]) == 0
    assert "3 images" in capsys.readouterr().out
