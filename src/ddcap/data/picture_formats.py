"""Which picture files are opened: photographs that Pillow decodes itself, told by their content.

Pillow knows some forty formats and goes by the content, not by the name. For a few it starts other programs
(Ghostscript for EPS), and the seldom used ones are seldom looked after: pictures come from strangers.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from ddcap.errors import ImageError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_OPENED_AS = {"MPO": "JPEG", "DIB": "BMP"}  # what Pillow calls some of the files that these readers open

# what people mistake for one of these, and Pillow does not know: the first bytes, and where they stand
_OTHERS = (
    ("HEIC", 4, (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")),
    ("AVIF", 4, (b"ftypavif", b"ftypavis")),  # Pillow may be built without
    ("MP4", 4, (b"ftyp",)),
    ("PDF", 0, (b"%PDF",)),
    ("EPS", 0, (b"%!PS",)),
    ("ZIP", 0, (b"PK\x03\x04",)),
    ("SVG", 0, (b"<svg",)),
    ("HTML", 0, (b"<!doctype html", b"<html")),
    ("XML", 0, (b"<?xml",)),
)
_HEAD = 32  # bytes


def open_picture(file: Path | BinaryIO, name: str) -> Image.Image:
    """Open a picture file, its pixels still to be decoded.

    Args:
        file: a path, or an open file that can seek.
        name: of the picture, for messages.

    Raises:
        ImageError: if the file is of no format that is read here; the one that was found is named.
        OSError: if it cannot be read; Pillow raises other errors for damaged files.
    """
    try:
        return Image.open(file, formats=_readable())
    except UnidentifiedImageError:
        found = _name_format(_read_head(file))
    if found in _readable():
        raise ImageError(
            f"{name}: damaged or cut short (begins as {found} and does not go on so); "
            "copy or download it again"
        )
    if found is not None:
        raise _refused(name, found)
    raise ImageError(
        f"{name}: not an image in a format that is read here, whatever its name says; "
        "convert it to JPEG or PNG"
    )


def check_open_picture(image: Image.Image, name: str) -> None:
    """Refuse a picture that somebody else has opened and not decoded, if it is of a format not read here.

    Raises:
        ImageError: naming the format.
    """
    is_undecoded = isinstance(image, ImageFile.ImageFile) and bool(image.tile)
    if is_undecoded and _OPENED_AS.get(image.format or "", image.format) not in _readable():
        raise _refused(name, str(image.format))


@lru_cache(maxsize=1)
def _readable() -> tuple[str, ...]:
    """Those formats that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _refused(name: str, found: str) -> ImageError:
    return ImageError(
        f"{name}: of format {found} by its first bytes, which is not read here, whatever its name says; "
        "convert it to JPEG or PNG"
    )


def _read_head(file: Path | BinaryIO) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return opened.read(_HEAD)
    file.seek(0)
    return file.read(_HEAD)


def _name_format(head: bytes) -> str | None:
    """The format that a file's first bytes promise; nothing of the file is interpreted."""
    text = head.lstrip().lower()
    for name, start, beginnings in _OTHERS:
        if head[start:].startswith(beginnings) or (start == 0 and text.startswith(beginnings)):
            return name
    for name, (_, accept) in Image.OPEN.items():
        try:
            if accept is not None and accept(head[:16]):
                return name
        except (IndexError, ValueError, TypeError):
            continue  # too short for it
    return None
