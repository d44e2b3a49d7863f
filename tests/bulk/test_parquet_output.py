"""Parquet: folders of others are neither added to nor removed from."""

import pytest

from ddcap.bulk.parquet_output import ParquetParts
from ddcap.commands import main

parquet = pytest.importorskip("pyarrow.parquet")
table = pytest.importorskip("pyarrow").table


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-x.parquet", "mine.parquet"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_a_folder_of_somebody_else_is_refused(tmp_path, capsys, small_photos, name, more):
    out = tmp_path / "mine.parquet"
    out.mkdir()
    parquet.write_table(table({"mine": [1]}), out / name)
    (out / "part-00007.parquet").write_bytes(b"no parquet")
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert main(["caption", str(small_photos[0]), "--out", str(out), *more]) == 1
    told = capsys.readouterr().err
    assert "in it is not of captions; choose another folder" in told and told.count("\n") == 1
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_overwrite_removes_its_own_parts_only(tmp_path):
    out = tmp_path / "c.parquet"
    for overwrite in (False, True):
        output = ParquetParts(out, overwrite=overwrite, rows=2)
        output.begin({})
        (out / "notes.txt").write_text("mine")
        (out / ".part-00000.parquet.1-0123abcd.writing").touch()  # of a job that was killed
        for number in range(3):
            output.write({"image": f"{overwrite}{number}.jpg", "caption": "a dog"})
        output.finish()
        output.close()
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()  # pyarrow reads every file of a folder
    names = [row["image"] for row in parquet.read_table(out).to_pylist()]
    assert names == ["True0.jpg", "True1.jpg", "True2.jpg"]
    ParquetParts(out, overwrite=True).close()  # nothing is removed before the job begins
    assert len(parquet.read_table(out)) == 3


def test_errors_go_out_of_the_parts_they_are_in(tmp_path):
    out = tmp_path / "c.parquet"
    for errors in ({0, 3, 5}, {5}, set()):
        output = ParquetParts(out, overwrite=False, rows=2)
        output.begin({})
        for number in range(6):
            if f"{number}.jpg" not in output.done:
                row = {"error": "no"} if number in errors else {"caption": "a dog"}
                output.write({"image": f"{number}.jpg", **row})
        output.finish()
        output.close()
        rows = parquet.read_table(out).to_pylist()
        assert sorted(row["image"] for row in rows) == [f"{number}.jpg" for number in range(6)]
        assert {int(row["image"][0]) for row in rows if row["error"]} == errors
