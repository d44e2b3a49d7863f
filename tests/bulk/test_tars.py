"""Images in tars to captions in tars: streamed, gone on with, and safe from who made the tar."""

import io
import json
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from ddcap import Captioner
from ddcap.bulk import tar_input
from ddcap.bulk.run import caption_files, count_images
from ddcap.bulk.tar_output import WITHOUT_CAPTION, TarOutput
from ddcap.commands import main


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def add(tar, name, content=b"", **more):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path, small_photos):
    """Two shards as img2dataset writes them: image, text and json of each sample, by webdataset's."""
    webdataset = pytest.importorskip("webdataset")
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05}.tar")) as writer:
            for number, photo in enumerate(small_photos[shard * 3 : shard * 3 + 3]):
                key = f"{shard:05}{number:04}"
                told = {"__key__": key, "jpg": photo.read_bytes(), "txt": "of the web", "json": {"key": key}}
                writer.write(told)
    return sorted(folder.glob("*.tar"))


def samples(tars):
    import webdataset

    return list(webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False, empty_check=False))


def into(tars, folder, captioner, **options):
    output = TarOutput(folder, map(str, tars))
    try:
        return caption_files(captioner, tars, output=output, preset="fast", **options)
    finally:
        output.close()


def test_tars_become_tars_of_the_same_names_and_keys(shards, tmp_path, default, capsys):
    out = tmp_path / "captions"
    command = ["caption", *map(str, shards), "--out", f"{out}/", "--with-pictures", "--preset", "fast"]
    assert main(command) == 0
    assert "6 captioned, 0 failed, 0 already done" in capsys.readouterr().err
    given, made = samples(shards), samples(sorted(out.glob("*.tar")))
    assert [one["__key__"] for one in made] == [one["__key__"] for one in given]
    assert [one["jpg"] for one in made] == [one["jpg"] for one in given]
    for one in made:
        with Image.open(io.BytesIO(one["jpg"])) as image:
            assert one["txt"].decode() == default(image, preset="fast")[0].text
        row = json.loads(one["json"])
        assert row["caption"] == one["txt"].decode() and row["image"].endswith(f"{one['__key__']}.jpg")
    assert sorted(path.name for path in out.iterdir()) == [
        ".ddcap-job",
        "00000.tar",
        "00001.tar",
        WITHOUT_CAPTION,
    ]
    before = [path.read_bytes() for path in sorted(out.glob("*.tar"))]
    assert main(command) == 0
    assert "0 captioned, 0 failed, 6 already done" in capsys.readouterr().err
    assert before == [path.read_bytes() for path in sorted(out.glob("*.tar"))]
    assert main([*command, "--overwrite"]) == 0
    assert "6 captioned" in capsys.readouterr().err
    assert before == [path.read_bytes() for path in sorted(out.glob("*.tar"))]


def test_tars_become_rows(shards, tmp_path, capsys):
    out = tmp_path / "captions.jsonl"
    command = ["caption", *map(str, shards), "--out", str(out), "--preset", "fast"]
    assert main(command) == 0 and main(command) == 0
    assert "0 captioned, 0 failed, 6 already done" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["image"] for row in rows][:2] == [f"{shards[0]}/00000000{n}.jpg" for n in (0, 1)]
    assert count_images(shards, "skip") == 6 == len(rows)


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9, 1.0])
def test_a_torn_tar_is_resumed(shards, tmp_path, default, share):
    out = tmp_path / "captions"
    into(shards, out, default)
    whole = (out / "00000.tar").read_bytes()
    (out / "00000.tar").unlink()
    torn = whole[: int(share * (len(whole) - 1024))]  # without the end mark, as it is while it grows
    (out / ".00000.tar.growing").write_bytes(torn)
    record = out / ".ddcap-job"
    record.write_text(record.read_text().replace('"closed": true', '"closed": false'))  # as a kill leaves it
    progress = into(shards, out, default)
    assert progress.captioned + progress.skipped == 6
    assert progress.captioned == {0.03: 3, 0.5: 2, 0.9: 1, 1.0: 0}[share]
    made = samples(sorted(out.glob("*.tar")))
    assert [one["__key__"] for one in made] == [one["__key__"] for one in samples(shards)]
    assert [one.name for one in out.iterdir() if one.name.startswith(".")] == [".ddcap-job"]


@pytest.mark.slow
def test_a_killed_job_ends_complete_without_doubles(tmp_path, small_photos):
    shard, out = tmp_path / "00000.tar", tmp_path / "captions"
    with tarfile.open(shard, "w") as tar:
        for number in range(24):
            add(tar, f"{number:04}.jpg", small_photos[number % len(small_photos)].read_bytes())
    command = [sys.executable, "-m", "ddcap", "caption", str(shard), "--out", f"{out}/", "--preset", "fast"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    growing, deadline = out / ".00000.tar.growing", time.monotonic() + 120
    while not growing.exists() or growing.stat().st_size < 20_000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (out / "00000.tar").exists()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and " 0 already done" not in done.stderr
    with tarfile.open(out / "00000.tar") as tar:
        names = tar.getnames()
    assert names == [f"{number:04}{ending}" for number in range(24) for ending in (".txt", ".json")]


def bomb():
    """A small PNG file of 400 million pixels."""
    content = io.BytesIO()
    Image.fromarray(np.zeros((20_000, 20_000), dtype=bool)).save(content, "PNG")
    return content.getvalue()


def test_hostile_members_cost_a_line_each(tmp_path, small_photos, default, monkeypatch):
    monkeypatch.setattr(tar_input, "LARGEST_MEMBER", 5_000_000)
    good = small_photos[0].read_bytes()
    shard, out = tmp_path / "00000.tar", tmp_path / "captions"
    (tmp_path / "secret.jpg").write_bytes(good)
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "0.jpg", good)
        add(tar, "/tmp/absolute.jpg", good)
        add(tar, "a/../../up.jpg", good)
        add(tar, "C:\\windows.jpg", good)
        add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.jpg"))
        add(tar, "hard.jpg", type=tarfile.LNKTYPE, linkname="0.jpg")
        add(tar, "pipe.jpg", type=tarfile.FIFOTYPE)
        add(tar, "huge.jpg", bytes(6_000_000))
        add(tar, "bomb.png", bomb())
        add(tar, "empty.jpg")
        add(tar, "text.jpg", b"no image")
        add(tar, "0.png", good)  # a second image of a key
        add(tar, "0.jpg", good)  # and the first one again
        add(tar, "script.sh", b"#!/bin/sh")
        add(tar, "last.jpg", good)
    before = set(tmp_path.rglob("*"))
    progress = into([shard], out, default)
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert new == {"captions", "captions/.ddcap-job", "captions/00000.tar", f"captions/{WITHOUT_CAPTION}"}
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames() == ["0.txt", "0.json", "last.txt", "last.json"]
    rows = [json.loads(line) for line in (out / WITHOUT_CAPTION).read_text().splitlines()]
    told = {row["image"].removeprefix(f"{shard}/"): row["error"] for row in rows}
    assert len(told) == len(rows) == progress.failed
    assert all(row.get("caption") is None for row in rows)
    expected = {
        "/tmp/absolute.jpg": "leads out",
        "a/../../up.jpg": "leads out",
        "C:\\windows.jpg": "leads out",
        "soft.jpg": "is a link",
        "hard.jpg": "is a link",
        "pipe.jpg": "no plain file",
        "huge.jpg": "6,000,000 bytes",
        "bomb.png": "decompression bomb",
        "empty.jpg": "",
        "text.jpg": "not an image",
        "0.png": "another image has its key",
    }
    assert told.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in told[name] and "\n" not in told[name] and f"{shard}/{name}" in told[name]


def cut_in_an_image(content):
    return content[: len(content) // 2]


def cut_between_members(content):
    return content[: tarfile.BLOCKSIZE + -(-len_of_first(content) // 512) * 512]


def len_of_first(content):
    return tarfile.TarInfo.frombuf(content[:512], "utf-8", "strict").size


def damaged_header(content):
    place = len(cut_between_members(content))
    return content[:place] + b"\xff" * 100 + content[place + 100 :]


def header_that_asks_for_memory(content):
    place = len(cut_between_members(content))
    huge = tarfile.TarInfo("x")
    huge.type, huge.size = tarfile.XHDTYPE, 8_000_000_000
    return content[:place] + huge.tobuf(tarfile.GNU_FORMAT) + content[place:]


def negative_size(content):
    place = len(cut_between_members(content))
    back = tarfile.TarInfo("back.jpg")
    back.size = -place - 512
    return content[:place] + back.tobuf(tarfile.GNU_FORMAT) + content[place:]


DAMAGES = [cut_in_an_image, cut_between_members, damaged_header, header_that_asks_for_memory, negative_size]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tar_gives_the_samples_before_the_damage(tmp_path, small_photos, default, damage):
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            add(tar, f"{number}.jpg", small_photos[number].read_bytes())
    shard.write_bytes(damage(shard.read_bytes()))
    progress = into([shard], tmp_path / "captions", default)
    assert progress.failed == 1 <= progress.captioned
    (row,) = map(json.loads, (tmp_path / "captions" / WITHOUT_CAPTION).read_text().splitlines())
    assert row["image"] == str(shard) and "copy or download it again" in row["error"]
    with tarfile.open(tmp_path / "captions" / "00000.tar") as tar:
        assert "0.txt" in tar.getnames()


def test_unsupported_options_are_refused(shards, tmp_path, small_photos, capsys):
    empty = tmp_path / "empty.tar"
    empty.touch()
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / "00000.tar").write_bytes(shards[0].read_bytes())
    name = str(shards[0])
    for words, reason in (
        ([name], "needs an output file"),
        ([name, "--sidecar", "txt"], "need image files on this machine"),
        ([str(small_photos[0]), "--out", f"{tmp_path}/captions/"], "is not a tar file"),
        ([name, "--out", str(shards[0].parent), "--overwrite"], "contains the input"),
        ([str(one / "00000.tar"), str(other / "00000.tar"), "--out", f"{tmp_path}/c/"], "have the same name"),
        ([name, "--out", f"{tmp_path}/c.jsonl", "--with-pictures"], "works with tar output only"),
    ):
        assert main(["caption", *words]) == 1
        told = capsys.readouterr().err
        assert reason in told and told.count("\n") == 1
    assert shards[0].exists()
    assert main(["caption", str(empty), str(tmp_path / "gone.tar"), "--out", f"{tmp_path}/c.jsonl"]) == 1
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert "damaged or cut off" in rows[0]["error"] and "No such file" in rows[1]["error"]


def test_failed_members_of_a_complete_tar_are_retried(tmp_path, small_photos, default):
    shard, out = tmp_path / "00000.tar", tmp_path / "captions"
    good = [photo.read_bytes() for photo in small_photos]

    def write(second):
        with tarfile.open(shard, "w") as tar:
            for number, content in enumerate((good[0], second, good[2])):
                add(tar, f"{number}.jpg", content)

    write(b"\xff\xd8nothing")
    told = []
    assert into([shard], out, default, on_failure=told.append).failed == 1
    assert told[0].startswith(f"{shard}/1.jpg: ")
    before, rows = (out / "00000.tar").read_bytes(), (out / WITHOUT_CAPTION).read_bytes()
    progress = into([shard], out, default)
    assert (progress.captioned, progress.failed, progress.skipped) == (0, 1, 2)
    assert (out / "00000.tar").read_bytes() == before and (out / WITHOUT_CAPTION).read_bytes() == rows
    write(good[1])
    progress = into([shard], out, default)
    assert (progress.captioned, progress.failed, progress.skipped) == (1, 0, 2)
    made = samples([out / "00000.tar"])
    assert [one["__key__"] for one in made] == ["0", "2", "1"]
    assert made[0]["txt"] in before and (out / WITHOUT_CAPTION).read_bytes() == b""
    assert into([shard], out, default).skipped == 3


def test_a_damaged_tar_that_was_copied_again_is_complete(tmp_path, small_photos, default):
    shard, out = tmp_path / "00000.tar", tmp_path / "captions"
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            add(tar, f"{number}.jpg", small_photos[number].read_bytes())
    whole = shard.read_bytes()
    shard.write_bytes(cut_between_members(whole))
    assert into([shard], out, default).failed == 1
    shard.write_bytes(whole)
    progress = into([shard], out, default)
    assert (progress.captioned, progress.failed, progress.skipped) == (2, 0, 1)
    assert [one["__key__"] for one in samples([out / "00000.tar"])] == ["0", "1", "2"]
    assert (out / WITHOUT_CAPTION).read_bytes() == b""


@pytest.mark.parametrize("name", ["00000.tar", ".00000.tar.growing", WITHOUT_CAPTION])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_tars_of_somebody_else_are_not_touched(tmp_path, shards, capsys, name, more):
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_bytes(shards[0].read_bytes() if name != WITHOUT_CAPTION else b"my notes\n")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["caption", str(shards[0]), "--out", f"{out}/", *more]) == 1
    told = capsys.readouterr().err
    assert "choose another" in told and told.count("\n") == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_refused_member_is_told(tmp_path, small_photos, capsys):
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "good.jpg", small_photos[0].read_bytes())
        add(tar, "soft.jpg", type=tarfile.SYMTYPE, linkname="good.jpg")
    assert main(["caption", str(shard), "--out", str(tmp_path / "c.jsonl"), "--preset", "fast"]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"{shard}/soft.jpg: is a link") and "1 captioned, 1 failed" in told[1]
