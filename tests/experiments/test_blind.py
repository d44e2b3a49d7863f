import json
import random
import re
from pathlib import Path

import pytest

from ddcap.data.records import CaptionedImage
from ddcap.errors import DataError
from experiments.blind import Verdict, main, make_sheet, score_sheet, to_text
from experiments.stored import Stored

RECORDS = [
    CaptionedImage(str(number), Path(f"/pictures/{number}.jpg"), "test", (f"people {number}",) * 5)
    for number in range(20)
]
OURS = Stored("ours", {one.image_id: f"our caption {one.image_id}" for one in RECORDS}, RECORDS)
SAME = {str(number): f"our caption {number}" for number in range(8)}
TWIN = Stored("twin", {one.image_id: f"their caption {one.image_id}" for one in RECORDS} | SAME, RECORDS)


def fill(sheet, key, answer):
    """The sheet with `answer(question, pair)` behind every question."""
    pairs = {question: iter(key["pairs"]) for question in ("fidelity", "fluency")}
    return re.sub(
        r"^(fidelity|fluency):$",
        lambda found: f"{found[1]}: {answer(found[1], next(pairs[found[1]]))}",
        sheet,
        flags=re.MULTILINE,
    )


def place(pair, name):
    return next(letter for letter in "AB" if pair[letter] == name)


def test_a_sheet_hides_whose_captions_they_are():
    sheet, key = make_sheet([OURS, TWIN], pairs=12, images_from=Path("/pictures"))
    assert "twin" not in sheet and "ours" not in sheet
    assert sheet.count("\n## ") == 12 and "![](13.jpg)" in sheet
    for number, pair in enumerate(key["pairs"], start=1):
        part = sheet.split(f"\n## {number}\n")[1].split("\n## ")[0]
        said = {"ours": "our", "twin": "their"}
        for letter in "AB":
            assert f"{letter}: {said[pair[letter]]} caption {pair['image_id']}\n" in part
        assert part.count(f"- people {pair['image_id']}\n") == 5
    assert {pair["A"] for pair in key["pairs"]} == {"ours", "twin"}
    assert not {pair["image_id"] for pair in key["pairs"]} & SAME.keys()


def test_the_draw_follows_the_seed():
    once, again, other = (make_sheet([OURS, TWIN], pairs=6, seed=seed) for seed in (0, 0, 1))
    assert once == again
    assert once[0] != other[0]


def test_more_pairs_than_differ_is_one_line():
    for pairs in (13, 0):
        with pytest.raises(DataError, match="12 images have different captions"):
            make_sheet([OURS, TWIN], pairs=pairs)


def test_fidelity_decides_and_fluency_where_it_is_the_same():
    sheet, key = make_sheet([OURS, TWIN], pairs=12)
    faithful = {pair["image_id"] for pair in key["pairs"][:7]}

    def answer(question, pair):
        if question == "fluency":
            return place(pair, "twin").lower()
        return place(pair, "ours") if pair["image_id"] in faithful else "same"

    verdicts = score_sheet(fill(sheet, key, answer), key)
    assert verdicts == {
        "fidelity": Verdict(7, 0, 5),
        "fluency": Verdict(0, 12, 0),
        "both": Verdict(7, 5, 0),
    }
    text = to_text(verdicts, key)
    assert "| fidelity | 7 | 0 | 5 | 100% [59%, 100%] | 0.016 |" in text
    assert "| both | 7 | 5 | 0 | 58%" in text


def test_sign_test_and_interval_by_the_tables():
    # binom.test(33, 50) in R: p 0.03284, 0.5123475 to 0.7879453
    assert Verdict(33, 17, 9).p == pytest.approx(0.03284, abs=1e-5)
    assert Verdict(33, 17, 9).interval == pytest.approx((0.5123475, 0.7879453), abs=1e-6)
    assert Verdict(0, 10, 0).interval == pytest.approx((0, 0.3084971), abs=1e-6)
    assert Verdict(10, 0, 0).interval == pytest.approx((0.6915029, 1), abs=1e-6)
    assert Verdict(0, 0, 4).p == Verdict(3, 3, 0).p == 1


def test_wrong_answers_of_a_sheet_are_refused():
    sheet, key = make_sheet([OURS, TWIN], pairs=3)
    with pytest.raises(DataError, match="pair 1, fidelity: there is no answer; write A, B, same"):
        score_sheet(sheet, key)
    with pytest.raises(DataError, match="'neither' is no answer"):
        score_sheet(fill(sheet, key, lambda *_: "neither"), key)
    filled = fill(sheet, key, lambda *_: "same")
    with pytest.raises(DataError, match="not the one that the key was made with"):
        score_sheet(filled.replace("our caption", "a caption"), key)
    with pytest.raises(DataError, match="not the one that the key was made with"):
        score_sheet(filled, make_sheet([OURS, TWIN], pairs=3, seed=1)[1])


def test_from_results_on_disk_and_back(finished, photo_splits, photos, tmp_path, capsys):
    results = [str(finished[0] / "results" / f"{name}-seed0.json") for name in ("a", "twin")]
    command = ["sheet", str(photo_splits), str(photos[0].parent), *results, "--pairs", "3"]
    command += ["--output", str(tmp_path / "blind")]
    assert main(command) == 0
    path = Path(capsys.readouterr().out.strip())
    sheet, key = path.read_text(), json.loads(path.with_name("key.json").read_text())
    for image in re.findall(r"!\[\]\((.*)\)", sheet):
        assert (path.parent / image).is_file()
    draw = random.Random(0)
    path.write_text(fill(sheet, key, lambda *_: draw.choice(["A", "B", "same"])))
    assert main(["score", str(path), str(path.with_name("key.json"))]) == 0
    assert "a-seed0 better" in capsys.readouterr().out
    assert main(command) == 1 and "may be filled" in capsys.readouterr().err
    assert main(["score", str(path), str(photo_splits)]) == 1
    assert "is no key" in capsys.readouterr().err
