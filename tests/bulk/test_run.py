"""Jobs of many images: every image once, whatever happens."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from ddcap import Captioner
from ddcap.bulk.names import from_text
from ddcap.bulk.output import COLUMNS
from ddcap.bulk.outputs import open_output
from ddcap.bulk.rows import JsonLines
from ddcap.bulk.run import caption_files
from ddcap.commands import main
from ddcap.errors import DataError


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture
def folder(tmp_path, small_photos):
    """Photographs in two folders, one that is broken, and one under a name that is no text."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number, photo in enumerate(small_photos):
        shutil.copy(photo, folder / ("more" if number % 2 else "") / photo.name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    shutil.copy(small_photos[0], os.fsencode(folder) + b'/\xff,"odd"\n.jpg')
    return folder


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="", errors="surrogateescape") as file:
            return list(csv.DictReader(file))
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_image_has_a_row(folder, kind, tmp_path, capsys, small_photos):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"captions.{kind}"
    command = ["caption", str(folder), "--out", str(out), "--preset", "fast"]
    assert main(command) == 1  # one is broken
    *failed, told = capsys.readouterr().err.splitlines()
    assert "1 failed, 0 already done" in told
    (line,) = [line for line in failed if "broken.jpg" in line]  # which one, and why
    rows = rows_of(out)
    assert len(rows) == len(small_photos) + 2
    (broken,) = [row for row in rows if "broken" in row["image"]]
    assert broken["error"] == line and not broken.get("caption")
    good = [row for row in rows if "broken" not in row["image"]]
    assert all(row["caption"] and 0 < float(row["sure"]) < 1 for row in good)
    expected = Captioner.from_pretrained()(from_text(good[0]["image"]), preset="fast")[0]
    assert good[0]["caption"] == expected.text
    assert main(command) == 1  # it is tried again
    told = capsys.readouterr().err
    assert f"0 captioned, 1 failed, {len(good)} already done" in told and line in told
    assert rows_of(out) == rows
    assert main([*command, "--ban", "man"]) == 1
    assert "--ban: not given before, man now" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    capsys.readouterr()
    assert sorted(row["image"] for row in rows_of(out)) == sorted(row["image"] for row in rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_row_is_made_again(default, folder, tmp_path, kind, cut):
    out = tmp_path / f"captions.{kind}"
    output = open_output(out)
    caption_files(default, [folder], output=output)
    output.close()
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    record = out.with_name(f".{out.name}.ddcap-job")
    record.write_text(record.read_text().replace('"closed": true', '"closed": false'))  # as a kill leaves it
    again = open_output(out)
    progress = caption_files(default, [folder], output=again)
    again.close()
    assert progress.done == len(rows_of(out)) and progress.failed == 1 and progress.captioned <= 1
    assert sorted(row["image"] for row in rows_of(out)) == sorted({row["image"] for row in rows_of(out)})
    names = {row["image"] for row in rows_of(out)}
    out.write_bytes(whole)
    assert names == {row["image"] for row in rows_of(out)}


@pytest.mark.slow
def test_a_job_killed_twice_ends_complete_without_doubles(tmp_path, small_photos):
    folder, out = tmp_path / "many", tmp_path / "captions.jsonl"
    folder.mkdir()
    for number in range(40):
        with Image.open(small_photos[number % len(small_photos)]) as image:
            image.save(folder / f"{number}.jpg")
    command = [sys.executable, "-m", "ddcap", "caption", str(folder), "--out", str(out), "--preset", "fast"]
    for wanted in (6, 20):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while (out.read_bytes().count(b"\n") if out.exists() else 0) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert out.read_bytes().count(b"\n") < 40
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
    images = [row["image"] for row in rows_of(out)]
    assert len(images) == len(set(images)) == 40


def test_text_sidecars_are_written(default, folder, small_photos, capsys):
    assert main(["caption", str(folder), "--sidecar", "txt"]) == 1
    texts = {path: path.read_text() for path in folder.rglob("*.txt")}
    assert len(texts) == len(small_photos) + 1 and all(text.endswith("\n") for text in texts.values())
    capsys.readouterr()
    assert main(["caption", str(folder), "--sidecar", "txt"]) == 1  # the broken one is tried again
    told = capsys.readouterr().err
    assert f"0 captioned, 1 failed, 0 already done, {len(texts)} sidecars or copies left as they were" in told
    assert "--overwrite replaces them" in told and f"{folder}/broken.jpg: " in told
    assert main(["caption", str(folder), "--sidecar", "xmp", "--ban", "a"]) == 1
    xmp = (folder / f"{small_photos[0].name}.xmp").read_text()
    assert "<dc:description>" in xmp and default(folder / small_photos[0].name, ban=["a"])[0].text in xmp


def test_uncertain_captions_are_left_out_with_a_reason(folder, tmp_path, small_photos):
    out = tmp_path / "captions.jsonl"
    main(["caption", str(folder / "more"), "--out", str(out), "--min-sure", "0.99"])
    rows = rows_of(out)
    assert len(rows) == len(small_photos) // 2
    assert all(row["caption"] is None and row["guess"] and "0.99" in row["why"] for row in rows)


def test_foreign_files_are_refused_and_unchanged(tmp_path, folder, capsys):
    for name, content in (("notes.jsonl", "dear diary\n"), ("table.csv", "a,b\n1,2\n")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(DataError, match="--overwrite"):
            open_output(path)
        assert path.read_text() == content
    with pytest.raises(DataError, match=r"unknown file type; use \.jsonl"):
        open_output(tmp_path / "captions.docx")
    with pytest.raises(DataError, match="its folder does not exist"):
        open_output(tmp_path / "nowhere" / "captions.jsonl")
    assert main(["caption", str(folder), "--out", "/dev/full/x.jsonl"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_an_image_named_twice_is_captioned_once(default, folder, tmp_path, small_photos):
    output = JsonLines(tmp_path / "c.jsonl", overwrite=False)
    one = folder / "more" / small_photos[1].name
    progress = caption_files(default, [one, folder / "more", one], output=output)
    output.close()
    assert progress.captioned == len(small_photos) // 2 == len(rows_of(tmp_path / "c.jsonl"))
    assert set(rows_of(tmp_path / "c.jsonl")[0]) <= set(COLUMNS)
