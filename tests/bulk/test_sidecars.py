"""Captions written into copies of images, read back by another program."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ddcap.bulk.outputs import open_output
from ddcap.bulk.run import Job
from ddcap.commands import main
from ddcap.errors import DataError

pytest.importorskip("exiv2")
from ddcap.bulk.sidecars import FIELDS, DescribedCopies, Sidecars

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool (Debian: libimage-exiftool-perl) is not installed"
)
TEXT = 'A dog, "Füchschen" & <犬>'
DARKTABLE = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>
</rdf:RDF></x:xmpmeta>
"""


def told(path, *fields):
    """What exiftool reads of some fields; a field that is not there is left out."""
    command = ["exiftool", "-j", "-G1", "-a", *(f"-{field}" for field in fields), str(path)]
    values = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
    return {name.partition(":")[2]: value for name, value in values.items() if ":" in name}


ALL = ("ImageDescription", "Caption-Abstract", "Description", "AltTextAccessibility")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def scan(path):
    """The compressed image data of a JPEG file."""
    content = path.read_bytes()
    return content[content.rindex(b"\xff\xda") :]


@needs_exiftool
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "jp2"])
def test_another_program_reads_the_caption_and_the_pixels_are_the_same(small_photos, tmp_path, ending):
    path, folder = tmp_path / f"photo.{ending}", tmp_path / "copies"
    with Image.open(small_photos[0]) as image:
        image.save(path)
    before = path.read_bytes()
    DescribedCopies(folder, [path], FIELDS).write(path, TEXT)
    assert path.read_bytes() == before
    copy = folder / path.name
    expected = dict.fromkeys(ALL, TEXT)
    if ending == "webp":
        del expected["Caption-Abstract"]  # there is no IPTC in WebP
    assert told(copy, *ALL) == expected
    assert np.array_equal(pixels(copy), pixels(path))
    if ending == "jpg":
        assert scan(copy) == scan(path)
    assert [path.name for path in folder.iterdir()] == [path.name]


@needs_exiftool
def test_only_chosen_fields_change(photos, tmp_path):
    image = tmp_path / "photo.jpg"
    shutil.copy(photos[0], image)
    before = {"Artist": "Zoë", "Keywords": ["a", "b"], "Creator": "Zoë", "Orientation": "Rotate 90 CW"}
    flags = ["-IFD0:Artist=Zoë", "-IPTC:Keywords=a", "-IPTC:Keywords=b", "-XMP-dc:Creator=Zoë"]
    flags += ["-IFD0:Orientation=Rotate 90 CW"]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *flags, str(image)], check=True)
    assert told(image, *before) == before
    fields = {"exif": ALL[0], "iptc": ALL[1], "xmp": ALL[2], "alt": ALL[3]}
    for name, field in fields.items():
        DescribedCopies(tmp_path / name, [image], [name]).write(image, TEXT)
        assert told(tmp_path / name / "photo.jpg", *ALL) == {field: TEXT}
        assert told(tmp_path / name / "photo.jpg", *before) == before
        assert scan(tmp_path / name / "photo.jpg") == scan(image)


@needs_exiftool
def test_a_folder_is_copied_with_its_captions(small_photos, tmp_path, capsys):
    album, copies, out = tmp_path / "album", tmp_path / "copies", tmp_path / "captions.jsonl"
    (album / "more").mkdir(parents=True)
    shutil.copy(small_photos[0], album / "a.jpg")
    shutil.copy(small_photos[1], album / "more" / "a.jpg")
    os.utime(album / "a.jpg", (1e9, 1e9))
    with Image.open(small_photos[0]) as image:
        image.save(album / "b.gif")
    before = {path: path.read_bytes() for path in album.rglob("*.*")}
    command = ["caption", str(album), "--copy-to", str(copies), "--write", "xmp,alt", "--preset", "fast"]
    assert main([*command, "--out", str(out)]) == 1  # GIF has no place for it
    rows = {row["image"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert "b.gif: cannot hold a caption in xmp, alt" in rows[str(album / "b.gif")]["error"]
    assert {path: path.read_bytes() for path in album.rglob("*.*")} == before
    found = {path.relative_to(copies).as_posix() for path in copies.rglob("*") if path.is_file()}
    assert found == {".ddcap-job", "a.jpg", "more/a.jpg"}
    for name in ("a.jpg", "more/a.jpg"):
        caption = rows[str(album / name)]["caption"]
        assert told(copies / name, *ALL) == {"Description": caption, "AltTextAccessibility": caption}
    assert (copies / "a.jpg").stat().st_mtime == 1e9
    capsys.readouterr()
    assert main(command) == 1
    assert "0 captioned, 1 failed, 0 already done, 2 sidecars or copies left" in capsys.readouterr().err
    assert main([*command[:-1], "best"]) == 1
    assert "--preset: fast before, best now" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    assert "2 captioned, 1 failed, 0 already done" in capsys.readouterr().err


def test_no_image_is_written_over(small_photos, tmp_path, capsys):
    album = tmp_path / "album"
    for name in ("x", "y"):
        (album / name).mkdir(parents=True)
        shutil.copy(small_photos[0], album / name / "a.jpg")
    before = (album / "x" / "a.jpg").read_bytes()
    for folder in (album, album / "copies"):
        with pytest.raises(DataError, match="choose a folder outside"):
            DescribedCopies(folder, [album])
    for given in (album / "x", album / "x" / "a.jpg"):  # a copy of another one could fall on it
        with pytest.raises(DataError, match="to caption; choose another folder"):
            DescribedCopies(album, [given])
    copies = DescribedCopies(tmp_path / "copies", [album / "x", album / "y"])
    copies.write(album / "x" / "a.jpg", TEXT)
    with pytest.raises(DataError, match="another image has the same name"):
        copies.write(album / "y" / "a.jpg", TEXT)
    assert not copies.write(album / "x" / "a.jpg", "another one")  # a copy that is there may be edited
    assert b"another one" not in (tmp_path / "copies" / "a.jpg").read_bytes()
    assert copies.write(album / "x" / "a.jpg", "another one", overwrite=True)
    assert (album / "x" / "a.jpg").read_bytes() == before
    assert main(["caption", str(album), "--sidecar", "txt", "--write", "xmp"]) == 1
    assert "add --copy-to FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["caption", str(album), "--copy-to", str(tmp_path / "c"), "--write", "xmp,gps"])
    assert "'gps' is not a metadata field; use exif, iptc, xmp, alt" in capsys.readouterr().err


@pytest.fixture
def album(tmp_path, small_photos):
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.jpg", "c.jpg", "c.png"):
        shutil.copy(small_photos[0], folder / name)
    return folder


def run(paths, beside, out=None, *, text="a dog", **options):
    """A job without a model: every image gets the same caption."""
    failures = []
    output = None if out is None else open_output(out)
    job = Job(output, [beside], on_failure=failures.append, **options)
    for image in job.images(paths, "skip"):
        job.take(image, {"caption": text})
    progress = job.finish()
    job.close()
    if output is not None:
        output.close()
    return progress, failures


@pytest.mark.parametrize("has_rows", [False, True])
def test_existing_files_stay(tmp_path, album, has_rows):
    copies, rating = tmp_path / "copies", DARKTABLE.encode()
    copies.mkdir()
    mine = {album / "a.txt": b"mine", copies / "a.jpg": b"my edit", album / "a.jpg.xmp": rating}
    for path, content in mine.items():
        path.write_bytes(content)
    (album / "c.png").unlink()
    (album / "c.txt").symlink_to(tmp_path / "nowhere")
    for number, beside in enumerate((Sidecars("txt"), DescribedCopies(copies, [album]), Sidecars("xmp"))):
        progress, failures = run([album], beside, tmp_path / f"{number}.jsonl" if has_rows else None)
        assert not failures and progress.kept == (2, 1, 0)[number]
    assert (album / "a.txt").read_bytes() == b"mine" and (copies / "a.jpg").read_bytes() == b"my edit"
    assert (album / "c.txt").is_symlink() and not (tmp_path / "nowhere").exists()
    merged, place = (album / "a.jpg.xmp").read_bytes(), rating.index(b"</rdf:RDF>")
    assert merged.startswith(rating[:place]) and merged.endswith(rating[place:]) and b">a dog<" in merged
    run([album], Sidecars("txt"), overwrite=True)
    run([album], Sidecars("xmp"), overwrite=True, text="a cat")
    assert (album / "a.txt").read_bytes() == b"a dog\n"
    merged = (album / "a.jpg.xmp").read_bytes()
    assert b'xmp:Rating="4"' in merged and b">a cat<" in merged and b"a dog" not in merged


@pytest.mark.parametrize("has_rows", [False, True])
def test_two_images_with_one_sidecar_are_an_error(tmp_path, album, has_rows):
    out = tmp_path / "c.jsonl" if has_rows else None
    for count in (2, 0):  # and again when the first one has its own
        progress, (failure,) = run([album], Sidecars("txt"), out)
        assert progress.captioned == count and progress.failed == 1
        assert "another image has the same name" in failure and "c.txt; rename one" in failure
        assert failure.startswith((f"{album}/c.png: ", f"{album}/c.jpg: "))
    if has_rows:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 3 and [row["error"] for row in rows if "error" in row] == [failure]
    assert run([album], Sidecars("xmp"))[0].captioned == 3


def test_a_caption_that_cannot_be_written_becomes_a_guess(tmp_path, album):
    (album / "a.jpg.xmp").write_text("no xmp")
    progress, (failure,) = run([album / "a.jpg"], Sidecars("xmp"), tmp_path / "c.jsonl")
    assert progress.failed == 1 and "is no XMP" in failure
    (row,) = map(json.loads, (tmp_path / "c.jsonl").read_text().splitlines())
    assert row == {"image": f"{album}/a.jpg", "guess": "a dog", "error": failure}


def test_names_that_are_not_utf8_or_very_long(tmp_path, small_photos):
    album = tmp_path / "album"
    album.mkdir()
    for name in (b"\xff.jpg", b"l" * 251 + b".jpg"):
        shutil.copy(small_photos[0], os.fsencode(album) + b"/" + name)
    for beside in (Sidecars("txt"), DescribedCopies(tmp_path / "copies", [album])):
        progress, failures = run([album], beside)
        assert progress.captioned == 2 and not failures
    assert all(b"a dog" in path.read_bytes() for path in (tmp_path / "copies").glob("*.jpg"))
    assert sum(path.suffix == ".txt" for path in album.iterdir()) == 2


def test_a_second_job_that_copies_to_one_folder_is_refused(tmp_path, album):
    first = DescribedCopies(tmp_path / "copies", [album])
    first.begin({}, overwrite=False)
    with pytest.raises(DataError, match="is writing to it"):
        run([album], DescribedCopies(tmp_path / "copies", [album]))
    first.close()
    run([album], DescribedCopies(tmp_path / "copies", [album]))
