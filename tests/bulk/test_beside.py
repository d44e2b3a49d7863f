"""Captions written into copies of pictures, read back by another program."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ddcap.commands import main
from ddcap.errors import DataError

pytest.importorskip("exiv2")
from ddcap.bulk.beside import FIELDS, DescribedCopies

needs_exiftool = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool (Debian: libimage-exiftool-perl) is not installed"
)
TEXT = 'A dog, "Füchschen" & <犬>'


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
    """The compressed picture of a JPEG file."""
    content = path.read_bytes()
    return content[content.rindex(b"\xff\xda") :]


@needs_exiftool
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp", "jp2"])
def test_another_program_reads_the_caption_and_the_pixels_are_the_same(small_photos, tmp_path, ending):
    picture, folder = tmp_path / f"photo.{ending}", tmp_path / "copies"
    with Image.open(small_photos[0]) as image:
        image.save(picture)
    before = picture.read_bytes()
    DescribedCopies(folder, [picture], FIELDS).write(picture, TEXT)
    assert picture.read_bytes() == before
    copy = folder / picture.name
    expected = dict.fromkeys(ALL, TEXT)
    if ending == "webp":
        del expected["Caption-Abstract"]  # there is no IPTC in WebP
    assert told(copy, *ALL) == expected
    assert np.array_equal(pixels(copy), pixels(picture))
    if ending == "jpg":
        assert scan(copy) == scan(picture)
    assert [path.name for path in folder.iterdir()] == [picture.name]


@needs_exiftool
def test_only_the_fields_that_are_asked_for_and_what_was_there_stays(photos, tmp_path):
    picture = tmp_path / "photo.jpg"
    shutil.copy(photos[0], picture)
    before = {"Artist": "Zoë", "Keywords": ["a", "b"], "Creator": "Zoë", "Orientation": "Rotate 90 CW"}
    flags = ["-IFD0:Artist=Zoë", "-IPTC:Keywords=a", "-IPTC:Keywords=b", "-XMP-dc:Creator=Zoë"]
    flags += ["-IFD0:Orientation=Rotate 90 CW"]
    subprocess.run(["exiftool", "-q", "-overwrite_original", *flags, str(picture)], check=True)
    assert told(picture, *before) == before
    fields = {"exif": ALL[0], "iptc": ALL[1], "xmp": ALL[2], "alt": ALL[3]}
    for name, field in fields.items():
        DescribedCopies(tmp_path / name, [picture], [name]).write(picture, TEXT)
        assert told(tmp_path / name / "photo.jpg", *ALL) == {field: TEXT}
        assert told(tmp_path / name / "photo.jpg", *before) == before
        assert scan(tmp_path / name / "photo.jpg") == scan(picture)


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
    assert found == {"a.jpg", "more/a.jpg"}
    for name in found:
        caption = rows[str(album / name)]["caption"]
        assert told(copies / name, *ALL) == {"Description": caption, "AltTextAccessibility": caption}
    assert (copies / "a.jpg").stat().st_mtime == 1e9
    capsys.readouterr()
    assert main(command) == 1
    assert "0 captioned, 1 failed, 2 already done" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    assert "2 captioned, 1 failed, 0 already done" in capsys.readouterr().err


def test_no_picture_is_written_over(small_photos, tmp_path, capsys):
    album = tmp_path / "album"
    for name in ("x", "y"):
        (album / name).mkdir(parents=True)
        shutil.copy(small_photos[0], album / name / "a.jpg")
    before = (album / "x" / "a.jpg").read_bytes()
    for folder in (album, album / "copies"):
        with pytest.raises(DataError, match="choose a folder outside"):
            DescribedCopies(folder, [album])
    with pytest.raises(DataError, match="is the original image"):
        DescribedCopies(album / "x", [album / "x" / "a.jpg"]).write(album / "x" / "a.jpg", TEXT)
    copies = DescribedCopies(tmp_path / "copies", [album / "x", album / "y"])
    copies.write(album / "x" / "a.jpg", TEXT)
    with pytest.raises(DataError, match="another image has the same name"):
        copies.write(album / "y" / "a.jpg", TEXT)
    assert (album / "x" / "a.jpg").read_bytes() == before
    assert main(["caption", str(album), "--sidecar", "txt", "--write", "xmp"]) == 1
    assert "add --copy-to FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["caption", str(album), "--copy-to", str(tmp_path / "c"), "--write", "xmp,gps"])
    assert "'gps' is not a metadata field; use exif, iptc, xmp, alt" in capsys.readouterr().err
