"""Images: which files are opened at all, and how they become pixels."""

from __future__ import annotations

import io
import logging
import math
import random
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ddcap.data.sources import EncodedImage as EncodedImage
from ddcap.data.sources import ImageSource as ImageSource
from ddcap.data.sources import taken
from ddcap.errors import ImageError, remedy
from ddcap.settings import EncoderSettings

# Which image files are opened: photographs that Pillow decodes itself, told by their content. Pillow knows
# some forty formats and goes by the content, not by the name. For a few it starts other programs (Ghostscript
# for EPS), and the seldom used ones are seldom looked after: images come from strangers.

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


def open_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """Open an image file, its pixels still to be decoded.

    Args:
        file: a path, or an open file that can seek.
        name: of the image, for messages.

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
            f"{name}: damaged or truncated (starts as {found} but is not valid); copy or download it again"
        )
    if found is not None:
        raise _refused(name, found)
    raise ImageError(
        f"{name}: not an image in a supported format, whatever its extension; convert it to JPEG or PNG"
    )


def check_open_image(image: Image.Image, name: str) -> None:
    """Refuse an image that somebody else has opened and not decoded, if it is of a format not read here.

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
        f"{name}: its format is {found}, whatever its extension, and ddcap cannot read it; "
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
        except (IndexError, ValueError, TypeError, struct.error):
            continue  # too short for it
    return None


# File or PIL image to the pixels an encoder wants. Every bad image becomes one clear error.

logger = logging.getLogger("ddcap")


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image."""

SMALLEST_SIDE = 16  # pixels; below this there is nothing to describe
LARGEST_AREA = 178_000_000  # pixels; above this, where Pillow itself gives up, lie decompression bombs
LONGEST_STRIP = 100  # ratio of the sides; beyond it there is nothing to describe either

# Beyond this ratio of the sides, "squash" first cuts the long side around the centre: no photograph of the
# training data is squashed harder than that, and a panorama squashed to a square shows people as pencils.
LARGEST_SQUASH = 2.0


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image to pixels.

    Attributes:
        size: side of the square, in pixels.
        fit: "squash" brings both sides to `size`; "crop" brings the short side to `size` and cuts the centre.
        mean: subtracted per channel, on the 0..1 scale.
        std: divided by per channel.
    """

    size: int
    fit: Literal["squash", "crop"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Pixels (3, H, W), float32, of an RGB `image`."""
        return self.normalize(self.view(image))

    def view(self, image: Image.Image) -> Image.Image:
        """Cut and scale an RGB `image` to what the encoder sees; the view of a view is the same."""
        if self.fit == "crop":
            # resize first, then cut, as CLIP does: cutting first would round the box to whole source pixels
            image = _resize_short_side(image, self.size)
            return image.crop(_centre_box(image.size, self.size))
        box = _squash_box(image.size)
        return image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)

    def augment(
        self, image: Image.Image, generator: random.Random, *, mirror: bool, crop: bool
    ) -> np.ndarray:
        """Pixels (3, H, W) of a training view: mirrored, or a random part with a changed aspect.

        Args:
            image: RGB.
            generator: the only source of randomness.
            mirror: whether to mirror.
            crop: whether to take a random part of 55 to 100 % of the area, its aspect changed by up to 4:3.
        """
        if crop:
            # a part of what the plain view shows
            shown = _centre_square(image.size) if self.fit == "crop" else _squash_box(image.size)
            box = _random_box(shown, generator)
            view = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
            pixels = self.normalize(view)
        else:
            pixels = self(image)
        return np.ascontiguousarray(pixels[..., ::-1]) if mirror else pixels

    def normalize(self, image: Image.Image) -> np.ndarray:
        """Pixels (3, H, W) of an RGB `image` that already has the right size."""
        pixels = np.array(image, dtype=np.float32) / np.float32(255)  # (H, W, 3)
        pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (3, H, W)


CLIP_MEAN_STD = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_EFFICIENTNET_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)


def preprocessing_of(encoder: EncoderSettings) -> Preprocessing:
    """Return the preprocessing that an image encoder expects, by its published training."""
    mean, std = CLIP_MEAN_STD if encoder.kind == "clip" else _EFFICIENTNET_LITE
    return Preprocessing(encoder.image_size, encoder.fit, mean, std)


def load_image(source: ImageSource, most_pixels: int = LARGEST_AREA, unnamed: str = "image") -> Image.Image:
    """Open `source` as an upright 8-bit RGB image.

    EXIF orientation is applied; palette, grey, CMYK, 16-bit and alpha images are converted (alpha on white).
    An animated file gives its first frame, an animated PIL image the frame it stands at. Only the raster
    formats that Pillow decodes itself are opened, whoever sent the file.

    Args:
        source: see `sources.ImageSource`.
        most_pixels: of it; one with more is not decoded.
        unnamed: what to call it in messages, where it has no name of its own.

    Raises:
        ImageError: one line with the file, the reason and the remedy.
    """
    given = taken(source, unnamed)
    with _without_remarks():
        if isinstance(given, Image.Image):
            name = str(getattr(given, "filename", "") or unnamed)
        else:
            name = str(given)
        try:
            if isinstance(given, Image.Image):
                check_open_image(given, name)
                return _to_rgb(given, name, most_pixels)
            if isinstance(given, EncodedImage):
                with open_image(io.BytesIO(given.content), name) as image:
                    return _to_rgb(image, name, most_pixels)
            return _read_file(given, most_pixels)
        except (ImageError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise _too_large(name, most_pixels) from None
        except PermissionError:
            raise ImageError(f"{name}: no permission to read it; change its permissions") from None
        except Exception as error:  # a damaged file makes Pillow raise whatever its decoder trips over
            if isinstance(error, OSError) and error.strerror:
                raise ImageError(f"{name}: cannot be read ({error.strerror}); {remedy(error)}") from None
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ImageError(f"{name}: damaged or truncated ({reason}); copy or download it again") from None


_lock = threading.Lock()
_readers = 0  # threads that read an image
_caught = warnings.catch_warnings()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Without Pillow's warnings about large or oddly tagged images; what matters becomes an ImageError.

    Python's filters belong to the whole process, and images are read by several threads at once: the first
    one sets them, the last one puts them back.
    """
    global _readers, _caught
    with _lock:
        if _readers == 0:
            _caught = warnings.catch_warnings()
            _caught.__enter__()
            warnings.simplefilter("ignore")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _caught.__exit__(None, None, None)


def find_images(paths: list[str | Path]) -> list[Path]:
    """Files as given, folders replaced by the images in them (recursively, sorted).

    Raises:
        ImageError: if a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file()
        )
        if not inside:
            raise ImageError(
                f"{path}: the folder contains no image ({', '.join(sorted(EXTENSIONS))}); check the path"
            )
        found.extend(inside)
    return found


def _read_file(path: Path, most_pixels: int) -> Image.Image:
    if not path.exists():
        raise ImageError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not an image; give a file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); copy or download it again")
    with open_image(path, str(path)) as image:
        frames = getattr(image, "n_frames", 1)
        # phones put a second, hidden image into their JPEG files; Pillow calls these MPO
        if frames > 1 and image.format != "MPO":
            logger.warning("%s: has %d frames or pages; captioning the first one", path, frames)
        return _to_rgb(image, str(path), most_pixels)


def _to_rgb(image: Image.Image, name: str, most_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > most_pixels:
        raise _too_large(name, most_pixels)
    shorter, longer = sorted((width, height))
    if shorter < SMALLEST_SIDE:
        raise ImageError(
            f"{name}: {width}x{height} pixels is too small; give at least {SMALLEST_SIDE}x{SMALLEST_SIDE}"
        )
    if longer > LONGEST_STRIP * shorter:
        raise ImageError(
            f"{name}: {width}x{height} pixels is too narrow; crop it to at most {LONGEST_STRIP}:1"
        )
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion to 8 bit clips at 255 instead of scaling
        scaled = np.clip(np.asarray(image, dtype=np.float64) / 256.0, 0, 255)
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image.convert("RGB")


def _too_large(name: str, most_pixels: int) -> ImageError:
    return ImageError(
        f"{name}: over {most_pixels / 1_000_000:g} million pixels, refused as a possible decompression bomb; "
        "shrink it"
    )


def _squash_box(size: tuple[int, int]) -> Box:
    """The whole image, or its centre if it is longer than LARGEST_SQUASH to 1."""
    width, height = size
    kept_width = min(width, height * LARGEST_SQUASH)
    kept_height = min(height, width * LARGEST_SQUASH)
    left, top = (width - kept_width) / 2, (height - kept_height) / 2
    return (left, top, left + kept_width, top + kept_height)


def _resize_short_side(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    scaled = (int(size * width / min(width, height)), int(size * height / min(width, height)))
    return image.resize(scaled, Image.Resampling.BICUBIC)


def _centre_box(size: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return (left, top, left + side, top + side)


def _centre_square(size: tuple[int, int]) -> Box:
    side = min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return (left, top, left + side, top + side)


def _random_box(whole: Box, generator: random.Random) -> Box:
    """A part of the box `whole`."""
    width, height = whole[2] - whole[0], whole[3] - whole[1]
    area = generator.uniform(0.55, 1.0)
    stretch = math.exp(generator.uniform(-0.5, 0.5) * math.log(4 / 3))
    part_width = width * min(1.0, math.sqrt(area) * stretch)
    part_height = height * min(1.0, math.sqrt(area) / stretch)
    left = whole[0] + generator.uniform(0, width - part_width)
    top = whole[1] + generator.uniform(0, height - part_height)
    return (left, top, left + part_width, top + part_height)
