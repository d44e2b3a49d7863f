"""The page's pixels against Pillow's: to the last bit."""

import base64
import sys

import numpy as np
import PIL
import pytest
from PIL import Image

from ddcap.data.images import Preprocessing

# from this version on it may resize columns before rows, and rounds between the two
ROWS_FIRST = int(PIL.__version__.split(".")[0]) < 13
RESIZE = """
const { resize } = await page("resize.js");
tell(data.cases.map(({ bytes, width, height, box, size }) => {
  const pixels = Uint8ClampedArray.from(Buffer.from(bytes, "base64"));
  const rows = (from, to) => pixels.subarray(from * width * 4, to * width * 4);
  return Buffer.from(resize({ width, height, rows }, box, ...size)).toString("base64");
}));
"""
PREPARE = """
const { pixelsOf } = await page("pixels.js");
tell(data.cases.map(({ bytes, width, height, how }) => {
  const pixels = Uint8ClampedArray.from(Buffer.from(bytes, "base64"));
  const rows = (from, to) => pixels.subarray(from * width * 4, to * width * 4);
  return Buffer.from(pixelsOf({ width, height, rows }, how).buffer).toString("base64");
}));
"""


def random_image(generator, width, height):
    """Noise with flat parts, whose edges overshoot."""
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 3, : width // 2] = generator.choice([0, 255])
    return Image.fromarray(pixels)


def encoded(image):
    return base64.b64encode(image.convert("RGBA").tobytes()).decode()


def test_resize_equals_pillows(node):
    generator = np.random.default_rng(0)
    cases, expected = [], []
    for number in range(120):
        width, height, *size = (int(one) for one in generator.integers(2, 260, 4))
        size[0] = width if number % 5 == 0 else size[0]
        size[1] = height if number % 7 == 0 else size[1]
        if number == 119:
            width, height, size = 700, 1900, [288, 288]
        if ROWS_FIRST and height - size[1] > max(0, 2 * (width - size[0])):
            continue
        image, box = random_image(generator, width, height), (0, 0, width, height)
        if number % 3 == 0:
            left, top = generator.uniform(0, width * 0.4), generator.uniform(0, height * 0.4)
            box = (left, top, generator.uniform(width * 0.6, width), generator.uniform(height * 0.6, height))
        resized = image.resize(tuple(size), Image.Resampling.BICUBIC, box=box)
        cases.append({"bytes": encoded(image), "width": width, "height": height, "box": box, "size": size})
        expected.append(resized.tobytes())
    assert len(cases) > 40
    for case, ours, theirs in zip(cases, node(RESIZE, cases=cases), expected, strict=True):
        assert base64.b64decode(ours) == theirs, {**case, "bytes": None}


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_preprocessing_equals_pythons(node, fit):
    generator = np.random.default_rng(1)
    how = Preprocessing(48, fit, (0.48, 0.457, 0.408), (0.268, 0.261, 0.275))
    sizes = [(64, 64), (48, 48), (200, 61), (90, 310), (310, 50), (47, 33)]
    if ROWS_FIRST:
        sizes = [(width, height) for width, height in sizes if width >= height]
    images = [random_image(generator, *size) for size in sizes]
    cases = [
        {
            "bytes": encoded(image),
            "width": image.width,
            "height": image.height,
            "how": {**vars(how), "largest_squash": 2.0},
        }
        for image in images
    ]
    for image, ours in zip(images, node(PREPARE, cases=cases), strict=True):
        pixels = np.frombuffer(base64.b64decode(ours), np.float32).reshape(3, 48, 48)
        np.testing.assert_array_equal(pixels, how(image), str(image.size))


def test_sizes_that_python_refuses_are_refused(node):
    code = """
const { checkSize } = await page("pixels.js");
const limits = { smallest_side: 16, largest_area: 178000000, longest_strip: 100 };
tell(data.sizes.map(([width, height]) => {
  try { checkSize(width, height, limits); return null; } catch (error) { return error.message; }
}));
"""
    found = node(code, sizes=[[16, 16], [15, 400], [16, 1601], [16, 1600], [20000, 9000]])
    assert found[0] is None and found[3] is None
    assert "400 pixels is too small" in found[1] and "too narrow" in found[2] and "178 million" in found[4]
    assert sys.byteorder == "little"  # what is compared above is in the machine's order
