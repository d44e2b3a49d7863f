"""An image may be given as others of this field take it; what is no image is told what to give."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ddcap.data.images import load_image
from ddcap.data.sources import EncodedImage, is_one_image
from ddcap.errors import ImageError


@pytest.fixture(scope="module")
def photo(photos):
    return photos[0]


@pytest.fixture(scope="module")
def pixels(photo):
    return np.asarray(load_image(photo))


def test_every_way_to_give_an_image_gives_the_same_pixels(photo, pixels):
    content = photo.read_bytes()
    read_once = io.BufferedReader(io.BytesIO(content))
    read_once.seekable = lambda: False  # as the answer of urlopen
    with photo.open("rb") as file:
        file.seek(100)  # the whole file is read, wherever it stands
        sources = [str(photo), photo, content, bytearray(content), memoryview(content), file, read_once]
        sources += [io.BytesIO(content), EncodedImage("a.jpg", content), Image.open(photo), pixels]
        for source in sources:
            assert is_one_image(source)
            np.testing.assert_array_equal(np.asarray(load_image(source)), pixels)
        np.testing.assert_array_equal(np.asarray(load_image(file)), pixels)  # again


def test_arrays_of_grey_alpha_and_other_layouts(pixels):
    grey = np.ascontiguousarray(pixels[..., 0])
    expected = np.stack([grey] * 3, axis=2)
    for array in (grey, grey[..., None]):
        np.testing.assert_array_equal(np.asarray(load_image(array)), expected)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(np.asarray(load_image(opaque)), pixels)
    mirrored = np.asarray(load_image(pixels[:, ::-1]))
    np.testing.assert_array_equal(mirrored, pixels[:, ::-1])


def test_one_image_or_several(pixels):
    several = [[pixels], (), np.stack([pixels, pixels]), np.array(["a.jpg", "b.jpg"]), iter([pixels]), 3]
    assert not any(is_one_image(one) for one in several)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "image: is no image but of type int; give a path, a PIL image, the bytes of an image file"),
        (None, "image: is no image but of type NoneType; give a path"),
        (b"", "image: has 0 bytes; give"),
        (b"ab", "image: not an image in a supported format"),
        (b"hello world, this is text", "image: not an image in a supported format"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg: is a URL, which ddcap does not download"),
        ("s3://bucket/a.jpg", "give its bytes: urllib.request.urlopen(url).read()"),
        ("data:image/png;base64,AAAA", "is a data URL; give its bytes: base64.b64decode"),
        (np.zeros((3, 40, 50), np.uint8), "(3, 40, 50); give (height, width, 3): array.transpose(1, 2, 0)"),
        (np.zeros((40, 50, 2), np.uint8), "is an array of shape (40, 50, 2); give (height, width, 3)"),
        (np.zeros((40, 50, 3)), "array of float64; give uint8, 0 to 255: (array * 255).round()"),
        (np.zeros((40, 50, 3), np.int64), "is an array of int64; give uint8, 0 to 255"),
        (np.zeros((4, 50, 3), np.uint8), "image: 50x4 pixels is too small"),
        (torch.zeros(3, 40, 50), "tensor of shape (3, 40, 50); give an array (height, width, 3)"),
        (io.StringIO("hello"), "image: is open as text; open it with mode 'rb'"),
    ],
)  # fmt: skip
def test_other_types_are_refused(source, message):
    with pytest.raises(ImageError, match=re.escape(message)) as refused:
        load_image(source)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 250


def test_files_that_cannot_be_read_are_named(photo):
    with photo.open("rb") as file:
        pass
    with pytest.raises(
        ImageError, match=r"astronaut.jpg: cannot be read .*closed file.*; open the file again"
    ):
        load_image(file)
    with photo.open() as text, pytest.raises(ImageError, match="is open as text; open it with mode 'rb'"):
        load_image(text)
