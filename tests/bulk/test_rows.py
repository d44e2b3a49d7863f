"""Rows of text: what is not ours is refused, only what is torn is cut, and errors are replaced."""

import csv
import json
import os
from pathlib import Path

import pytest

from ddcap.bulk.output import COLUMNS
from ddcap.bulk.outputs import open_output
from ddcap.bulk.run import Job
from ddcap.bulk.tar_input import TarImage
from ddcap.commands import main
from ddcap.errors import DataError

HEADER = ",".join(COLUMNS)


def run(out, paths, *, fails=(), captions=("a dog",), overwrite=False, **options):
    """A job without a model: what it would write of images is given."""
    output = open_output(out, overwrite=overwrite)
    try:
        job = Job(output, options=options)
        for image in job.images(paths, "skip"):
            name = Path(str(image)).name
            more = {"captions": list(captions)} if len(captions) > 1 else {}
            good = {"caption": captions[0], **more}
            job.take(image, {"error": f"{image}: {fails[name]}"} if name in fails else good)
        return job.finish()
    finally:
        output.close()


def rows_of(out):
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text().splitlines()]
    if out.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(out).to_pylist()
    with out.open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def content_of(out):
    return [path.read_bytes() for path in (sorted(out.glob("part*")) if out.is_dir() else [out])]


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "more").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "more/c.jpg"):
        (folder / name).write_bytes(b"an image")
    return folder


def mark_killed(out):
    record = out.with_name(f".{out.name}.ddcap-job")
    record.write_text(record.read_text().replace('"closed": true', '"closed": false'))


NOT_OURS = {
    "jsonl": [
        '{"my":"precious config"}',
        '{"my":"precious config"}\n',
        '{"image": "a.jpg", "label": 3}\n',
        '{"image": "a.jpg", "caption": "mine", "licence": "mine"}\n',
        '{"image": "a.jpg", "caption": "a dog"}\nmy note',
        '{"image": "a.jpg"',
        "[1, 2]\n",
        "\n",
        "dear diary",
    ],
    "csv": [
        "a,b",
        "a,b\n1,2\n",
        "image,caption\n",
        "image,capt",
        'a,b\n"no end\n1,2\n',
        f"{HEADER}\nshort,row\n",
        f'{HEADER}\r\na.jpg,"no end,,,,,,,\r\nb.jpg,a dog,,,,,,,\r\n',
    ],
}


@pytest.mark.parametrize("kind, content", [(kind, text) for kind in NOT_OURS for text in NOT_OURS[kind]])
def test_foreign_files_are_refused_and_unchanged(tmp_path, album, kind, content, capsys):
    out = tmp_path / f"mine.{kind}"
    out.write_text(content, newline="")
    names = sorted(os.listdir(tmp_path))
    assert main(["caption", str(album), "--out", str(out)]) == 1
    told = capsys.readouterr().err
    assert str(out) in told and "another file, or add --overwrite" in told and told.count("\n") == 1
    assert out.read_bytes() == content.encode() and sorted(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("note", ["my note", "my note\n", '"my note'])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_notes_added_by_the_user_are_kept(tmp_path, album, kind, note):
    out = tmp_path / f"c.{kind}"
    run(out, [album])
    with out.open("a") as file:
        file.write(note)
    before = out.read_bytes()
    with pytest.raises(DataError, match="is not a caption row"):
        run(out, [album])
    assert out.read_bytes() == before


@pytest.mark.parametrize("is_old", [False, True])  # of a version without job files
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_only_a_torn_row_is_cut_off(tmp_path, album, kind, is_old):
    out = tmp_path / f"c.{kind}"
    run(out, [album])
    whole = out.read_bytes()
    last = len(whole) - whole.rindex(b"\n", 0, -1) - 1
    for cut in range(1, last + 1):
        out.write_bytes(whole[:-cut])
        if is_old:
            out.with_name(f".{out.name}.ddcap-job").unlink()
        else:
            mark_killed(out)
        progress = run(out, [album])
        assert out.read_bytes() == whole
        assert progress.captioned == (cut > 1 + (kind == "csv")) and progress.failed == 0


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_failed_images_are_retried_and_have_one_row(tmp_path, album, kind):
    out = tmp_path / f"c.{kind}"
    assert run(out, [album], fails={"a.jpg": "is damaged", "c.jpg": "is damaged"}).failed == 2
    before = content_of(out)
    again = run(out, [album], fails={"a.jpg": "is damaged", "c.jpg": "is damaged"})
    assert (again.captioned, again.failed, again.skipped) == (0, 2, 1)
    assert content_of(out) == before  # the very same error is not written again
    again = run(out, [album], fails={"a.jpg": "is too large"})
    assert (again.captioned, again.failed, again.skipped) == (1, 1, 1)
    rows = {row["image"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 3
    assert "too large" in rows[str(album / "a.jpg")]["error"]
    assert rows[str(album / "more" / "c.jpg")]["caption"] and not rows[str(album / "more" / "c.jpg")].get(
        "error"
    )
    assert run(out, [album]).failed == 0
    assert not any(row.get("error") for row in rows_of(out)) and len(rows_of(out)) == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_errors_that_a_killed_job_has_replaced_are_removed_by_the_next(tmp_path, album, kind):
    out = tmp_path / f"c.{kind}"
    run(out, [album], fails={"a.jpg": "is damaged"})
    output = open_output(out)
    job = Job(output)
    for image in job.images([album], "skip"):
        job.take(image, {"caption": "a cat"})
    output.close()  # and not finished
    assert len(rows_of(out)) == 4
    assert run(out, [album]).skipped == 3
    assert sorted(row["caption"] for row in rows_of(out)) == ["a cat", "a dog", "a dog"]


def test_a_folder_that_can_be_read_again_loses_its_error(tmp_path, album, monkeypatch):
    out, scandir = tmp_path / "c.jsonl", os.scandir

    def refuse(path):
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        assert run(out, [album]).failed == 1
    assert any("cannot be read" in row.get("error", "") for row in rows_of(out))
    assert run(out, [album]).failed == 0
    assert sorted(Path(row["image"]).name for row in rows_of(out)) == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_one_image_has_one_row_however_it_is_spelled(tmp_path, album, kind, monkeypatch):
    out = tmp_path / f"c.{kind}"
    (tmp_path / "link").symlink_to(album)
    monkeypatch.chdir(tmp_path)
    assert run(out, ["album"]).captioned == 3
    for spelling in ("./album", "album/../album/", str(album), "link", "album/more/../a.jpg"):
        assert run(out, [spelling]).captioned == 0
    monkeypatch.chdir(album)
    (album / "d.jpg").touch()
    assert run(out, ["."]).captioned == 1 and run(out, ["."]).captioned == 0
    monkeypatch.chdir(tmp_path)
    assert run(out, ["album"]).captioned == 0
    assert len(rows_of(out)) == 4 and sum(row["image"].startswith("album") for row in rows_of(out)) == 3


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_caption_that_is_asked_for_is_kept(tmp_path, album, kind):
    out, three = tmp_path / f"c.{kind}", ("a dog", "a brown dog", 'a dog, "sitting"')
    run(out, [album / "a.jpg"], captions=three, num=3)
    assert run(out, [album / "a.jpg", album / "b.jpg"], captions=three, num=3).captioned == 1
    for row in rows_of(out):
        found = row["captions"] if kind != "csv" else [row["caption"], row["caption_2"], row["caption_3"]]
        assert tuple(found) == three and row["caption"] == three[0]
    with pytest.raises(DataError, match="--num"):
        run(out, [album], num=2)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_name_that_is_not_utf8_is_kept(tmp_path, kind):
    out, image = tmp_path / f"c.{kind}", Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff,"odd"\n%41.jpg'))
    image.touch()
    assert run(out, [image], fails={image.name: "is damaged"}).failed == 1
    assert run(out, [image]).captioned == 1
    assert run(out, [image]).skipped == 1
    (row,) = rows_of(out)
    assert row["caption"] == "a dog"
    if kind == "parquet":
        from urllib.parse import unquote_to_bytes

        assert unquote_to_bytes(row["image"].removeprefix("file://")) == os.fsencode(image)
    else:
        assert row["image"] == str(image)


def test_overwrite_removes_nothing_before_the_job_begins(tmp_path, album):
    out = tmp_path / "mine.jsonl"
    out.write_text("dear diary")
    open_output(out, overwrite=True).close()  # for instance since an option is wrong
    assert out.read_text() == "dear diary"
    run(out, [album], overwrite=True)
    assert len(rows_of(out)) == 3


def test_a_tar_and_its_members_have_one_name_each(tmp_path):
    out = tmp_path / "c.jsonl"
    output = open_output(out)
    output.begin({})
    member = TarImage(f"{tmp_path}/x.tar/../a.jpg", b"", f"{tmp_path}/x.tar", "../a.jpg")
    output.write({"image": str(member), "caption": "a dog"}, member)
    output.close()
    again = open_output(out)
    assert str(member) in again.done and f"{tmp_path}/a.jpg" not in again.done
    again.close()
