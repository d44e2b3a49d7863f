import json
import shutil

import pytest

from ddcap.commands import main
from ddcap.data.preparation import check_data


@pytest.fixture
def folder(photos, tmp_path):
    """Four real photographs, one of which is cut short."""
    for photo in photos[:4]:
        shutil.copy(photo, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / names[1]).write_bytes((tmp_path / names[1]).read_bytes()[:3000])
    return tmp_path, names


@pytest.fixture
def broken_json(folder):
    root, names = folder
    images = [
        {"filename": name, "split": "train", "sentences": [{"raw": "a picture"}]}
        for name in [*names, "gone.jpg"]
    ]
    images[3]["sentences"] = []
    path = root / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_every_problem_of_a_json_is_listed(broken_json, folder, processes):
    root, names = folder
    report = check_data(broken_json, root, processes=processes)
    assert [(problem.kind, problem.item) for problem in report.problems] == [
        ("entry", str(broken_json)),
        ("unreadable", str(root / names[1])),
        ("missing", str(root / "gone.jpg")),
    ]
    assert "images[3]" in report.problems[0].reason and "no 'sentences'" in report.problems[0].reason
    assert "damaged or truncated" in report.problems[1].reason
    assert report.images == {"train": 4} and report.captions == {"train": 4}


def test_a_folder_of_text_files(folder):
    root, names = folder
    for name in names[:3]:
        (root / name).with_suffix(".txt").write_text("a picture\n" if name != names[2] else "")
    report = check_data(root, ".")
    assert sorted((problem.kind, problem.item) for problem in report.problems) == [
        ("entry", str((root / names[2]).with_suffix(".txt"))),
        ("entry", str(root / names[3])),
        ("unreadable", str(root / names[1])),
    ]
    assert sum(report.images.values()) == 2


def test_a_csv_file(folder):
    root, names = folder
    path = root / "captions.csv"
    rows = [f"{names[0]},a picture,train", f"{names[1]},,train", f"{names[2]},another,dev"]
    path.write_text("\n".join(["image,caption,split", *rows]))
    report = check_data(path, root)
    assert [problem.reason for problem in report.problems] == [
        "line 3 has no image or no caption; fill it in, or delete the row",
        "line 4 has split 'dev'; use train, val or test, one split in all rows of an image",
    ]


def test_the_command_lists_problems_and_fails(broken_json, folder, capsys):
    root, names = folder
    assert main(["data", "check", str(broken_json), "--images", str(root), "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert f"unreadable: {root / names[1]}: damaged or truncated" in output.out
    assert "train: 4 images, 4 captions" in output.err and "3 problems" in output.err
    arguments = ["data", "check", str(broken_json), "--images", str(root), "--workers", "1"]
    main([*arguments, "--format", "jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["entry", "unreadable", "missing"]


def test_a_sound_data_set_passes(photos, captions_json, capsys):
    arguments = ["data", "check", str(captions_json), "--images", str(photos[0].parent), "--workers", "1"]
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert output.out == "" and "0 problems" in output.err
