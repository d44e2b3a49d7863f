import io
import os
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

from ddcap.data.images import EXTENSIONS, EncodedImage, load_image, open_image
from ddcap.errors import ImageError


@pytest.fixture
def image():
    pixels = np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def message(source):
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    return str(caught.value)


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A program in Ghostscript's place, and the file that it writes when somebody starts it."""
    marker, folder = tmp_path / "started", tmp_path / "programs"
    folder.mkdir()
    (folder / "gs").write_text(f'#!/bin/sh\necho "$@" >> {marker}\n')
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow keeps what it found before
    assert EpsImagePlugin.has_ghostscript() and marker.exists()
    marker.unlink()
    return marker


@pytest.mark.parametrize("how", ["file", "content", "open"])
def test_no_image_starts_a_program(image, started, tmp_path, how):
    path = tmp_path / "photo.jpg"
    image.save(path, "EPS")
    with Image.open(path) as opened:
        sources = {"file": path, "content": EncodedImage("photo.jpg", path.read_bytes()), "open": opened}
        assert "photo.jpg: its format is EPS, whatever its extension, and ddcap cannot read it" in message(
            sources[how]
        )
    assert not started.exists()


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "MPO"]
)
def test_photographs_are_read_in_every_way(image, tmp_path, form):
    needs = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}.get(form)
    if needs and not features.check(needs):
        pytest.skip(f"this Pillow is built without {form}")
    path = tmp_path / "photo.bin"
    image.save(path, form)
    expected = np.asarray(image).astype(int)
    for source in (path, EncodedImage("photo", path.read_bytes()), Image.open(path)):
        difference = np.abs(np.asarray(load_image(source)).astype(int) - expected)
        assert difference.mean() < (20 if form == "GIF" else 5)


@pytest.mark.parametrize("form", ["ICO", "PCX", "SGI", "PDF", "DDS", "ICNS", "MSP", "XBM"])
def test_other_formats_are_named(image, form):
    file = io.BytesIO()
    image.convert("1" if form in ("MSP", "XBM") else "RGB").save(file, form)
    expected = f"photo.jpg: its format is {form}, whatever its extension, and ddcap cannot read it"
    assert expected in message(EncodedImage("photo.jpg", file.getvalue()))


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)),
        ("MP4", b"\0\0\0\x18ftypisom\0\0\0\0" + bytes(100)),
        ("SVG", b'\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("HTML", b"<!DOCTYPE html><html>no such page</html>"),
        ("EPS", b"%!PS-Adobe-3.0\n"),
        ("ZIP", zipped()),
    ],
)
def test_formats_that_are_not_read_are_named(form, content):
    assert f"photo.jpg: its format is {form}, whatever its extension, and ddcap cannot" in message(
        EncodedImage("photo.jpg", content)
    )


@pytest.mark.parametrize("content", [b"", b"\xff", b"%", b"\0\0\0\x18ftyp", b"\x89PNG\r\n\x1a\n"])
def test_a_few_bytes_are_one_line_too(content):
    message(EncodedImage("photo.jpg", content))


def test_damage_is_told_from_another_format(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    damaged = file.getvalue().replace(b"IHDR", b"JUNK")
    assert "photo.jpg: damaged or truncated" in message(EncodedImage("photo.jpg", damaged))


def test_a_decoded_image_of_any_format_is_taken(image, tmp_path):
    image.save(tmp_path / "a.tga")
    opened = Image.open(tmp_path / "a.tga")
    assert "its format is TGA" in message(opened)
    opened.load()  # by somebody who trusts it
    assert load_image(opened).size == (40, 30)


def test_opening_decodes_nothing(image, tmp_path):
    image.save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png", "a.png") as opened:
        assert opened.tile and opened.size == (40, 30)
    assert {".jpg", ".png", ".webp", ".avif"} <= EXTENSIONS
