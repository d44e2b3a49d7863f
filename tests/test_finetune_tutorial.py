"""docs/finetune.md, run for real: its commands, on the default model, really change the captions."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from ddcap.commands import main
from ddcap.data.records import load_csv, load_text_files

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "finetune.md").read_text()
ANIMALS = ROOT / "examples" / "animals"


def section(name):
    return PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]


def commands(text):
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("ddcap ")]


def run(command, capsys, *more):
    assert main([*command, *more]) == 0, command
    return capsys.readouterr()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder from which the page's paths lead to the repository's files."""
    for name in ("examples", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps this small gain nothing by more, and lose much where others compute, too
    yield tmp_path
    torch.set_num_threads(threads)


def named(output):
    """The training images whose caption names the animal, by a whole word."""
    found = []
    for line in map(json.loads, output.splitlines()):
        stem = Path(line["image"]).stem
        animal = stem.split("_")[-1].removesuffix("s")
        if stem != "cat" and animal in {word.removesuffix("s") for word in line["caption"].split()}:
            found.append(stem)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_the_tutorial_teaches_the_default_model_a_dozen_animals(capsys):
    caption, check, train, caption_again, score, score_again, unseen = commands(section("tutorial"))
    jsonl = ["--format", "jsonl"]  # the same captions, for programs
    before = named(run(caption, capsys, *jsonl).out)
    assert 3 <= len(before) <= 12, before  # it knows some of them, under their common names

    assert "train: 16 images, 32 captions" in run(check, capsys).err

    # 6 of the recipe's 50 epochs, after which it knows most of them; the page's figures are those of all
    assert run(train, capsys, "training.epochs=6").out.split() == ["runs/animals/best"]

    after = named(run(caption_again, capsys, *jsonl).out)
    assert len(after) >= max(9, len(before) + 1), after  # of sixteen

    ciders = [
        json.loads(run(command, capsys, "--json").out)["metrics"]["CIDEr"] for command in (score, score_again)
    ]
    assert ciders[1] > ciders[0] + 100

    said = [json.loads(line) for line in run(unseen, capsys, *jsonl).out.splitlines()]
    assert len(said) == 12 and all(line["caption"] for line in said)

    exec(section("python").split("```python")[1].split("```")[0], {})
    assert len(capsys.readouterr().out.split()) >= 3  # a caption


@pytest.mark.slow
def test_the_csv_of_the_page_trains(here, capsys):
    csv = re.search(r"```csv\n(.*?)```", PAGE, re.DOTALL)[1]
    (here / "animals.csv").write_text(csv)
    records = load_csv(here / "animals.csv", ANIMALS, 0.1)
    assert [(record.image_id, record.split, len(record.captions)) for record in records] == [
        ("cow.jpg", "train", 2),
        ("kitten.jpg", "train", 2),
        ("cat.jpg", "val", 1),
    ]
    (train,) = commands(section("csv"))
    assert run(train, capsys, "training.epochs=2").out.split() == ["runs/from_csv/best"]
    assert (here / "runs" / "from_csv" / "best" / "model.safetensors").is_file()

    (encoder_too,) = commands(section("encoder"))
    tiny = [*train[2:-1], "training.output=runs/encoder", "training.epochs=1"]
    assert run(encoder_too, capsys, *tiny).out.split() == ["runs/encoder/best"]


def test_the_folder_holds_what_the_page_says():
    records = load_text_files(ANIMALS, 0.1)
    assert [record.path.stem for record in records if record.split == "val"] == ["cat"]
    assert len(records) == 17 and all(len(record.captions) == 2 for record in records)


@pytest.mark.parametrize("folder", ["photos", "animals", "unseen_animals"])
def test_every_example_photograph_is_credited_and_small(folder):
    credited = re.findall(r"^\| `(.+?)` \|", (ROOT / "examples" / folder / "CREDITS.md").read_text(), re.M)
    images = sorted((ROOT / "examples" / folder).glob("*.jpg"))
    assert sorted(credited) == [image.name for image in images]
    assert sum(image.stat().st_size for image in images) < 700_000
