import random

import numpy as np
import pytest
from PIL import Image

from ddcap.data.images import Preprocessing, load_image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PLAIN = Preprocessing(64, "squash", (0, 0, 0), (1, 1, 1))  # pixels stay on the 0..1 scale


@pytest.mark.parametrize("turned", [False, True], ids=["as it is", "turned"])
def test_crop_equals_clips_own_processor(turned, photos):
    processor_type = pytest.importorskip("transformers").CLIPImageProcessorPil
    processor = processor_type(size={"shortest_edge": 224}, crop_size=224, image_mean=MEAN, image_std=STD)
    crop = Preprocessing(224, "crop", MEAN, STD)
    shapes = set()
    for path in photos:
        image = load_image(path)
        if turned:
            image = image.transpose(Image.Transpose.ROTATE_90)
        shapes.add((image.width > image.height) - (image.width < image.height))
        expected = processor(image, return_tensors="pt").pixel_values[0]
        np.testing.assert_allclose(crop(image), expected, rtol=0, atol=1e-5)
    assert {1, -1} & shapes


@pytest.mark.parametrize("size", [(100, 64), (64, 101), (65, 64), (64, 64), (333, 100), (20, 77)])
def test_crop_equals_clips_own_processor_at_odd_sizes(size):
    processor_type = pytest.importorskip("transformers").CLIPImageProcessorPil
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = processor_type(size={"shortest_edge": 64}, crop_size=64)(image, return_tensors="pt")
    actual = Preprocessing(64, "crop", MEAN, STD)(image)
    np.testing.assert_allclose(actual, expected.pixel_values[0], rtol=0, atol=1e-5)


def test_squash_brings_both_sides_to_the_size(chelsea):
    image = load_image(chelsea)
    for view in (image, image.transpose(Image.Transpose.ROTATE_90)):
        assert view.width != view.height
        expected = np.asarray(view.resize((64, 64), Image.Resampling.BICUBIC)) / 255
        pixels = PLAIN(view)
        assert pixels.shape == (3, 64, 64) and pixels.dtype == np.float32
        assert np.allclose(pixels.transpose(1, 2, 0), expected, atol=1e-6)


def test_squash_keeps_everything_of_a_2_to_1_image_and_cuts_longer_ones():
    def bars(width):
        image = Image.new("RGB", (width, 100), "white")
        image.paste("red", (0, 0, width // 8, 100))
        image.paste("blue", (width - width // 8, 0, width, 100))
        return image

    def edges(pixels):
        return pixels[:, 32, 2].tolist(), pixels[:, 32, -3].tolist()

    assert edges(PLAIN(bars(200))) == ([1, 0, 0], [0, 0, 1])
    assert edges(PLAIN(bars(400))) == ([1, 1, 1], [1, 1, 1])
    turned = PLAIN(bars(400).transpose(Image.Transpose.ROTATE_90))
    assert turned.min() == 1


@pytest.mark.parametrize("turn", [False, True], ids=["wide", "high"])
def test_squash_of_a_panorama_is_the_squash_of_its_centre(turn, chelsea):
    wide = load_image(chelsea).resize((300, 100))
    centre = wide.crop((50, 0, 250, 100))
    if turn:
        wide, centre = (image.transpose(Image.Transpose.ROTATE_90) for image in (wide, centre))
    whole = PLAIN(wide)
    part = PLAIN(centre)
    # at the cut the filter sees one image go on and the other end
    inner = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(whole[inner], part[inner], rtol=0, atol=1.5 / 255)
    assert np.abs(whole - part).max() < 0.2


def test_normalisation_is_per_channel():
    pixels = Preprocessing(16, "squash", MEAN, STD)(Image.new("RGB", (20, 20), (255, 0, 51)))
    expected = [(value - mean) / std for value, mean, std in zip((1, 0, 0.2), MEAN, STD, strict=True)]
    assert pixels.mean(axis=(1, 2)).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("size", [(90, 60), (61, 90), (300, 60), (64, 64)])
def test_the_mirrored_view_is_the_mirror_of_the_plain_one(fit, size, chelsea):
    preprocessing = Preprocessing(64, fit, MEAN, STD)
    image = load_image(chelsea).resize(size)
    mirrored = preprocessing.augment(image, random.Random(0), mirror=True, crop=False)
    assert np.array_equal(mirrored[..., ::-1], preprocessing(image))
    assert not np.array_equal(mirrored, preprocessing(image))


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_random_crops_are_a_function_of_the_generator(fit, chelsea):
    preprocessing = Preprocessing(64, fit, MEAN, STD)
    image = load_image(chelsea)

    def crop(seed, mirror=False):
        return preprocessing.augment(image, random.Random(seed), mirror=mirror, crop=True)

    assert np.array_equal(crop(1), crop(1))
    assert not np.array_equal(crop(1), crop(2))
    assert np.array_equal(crop(1, mirror=True), crop(1)[..., ::-1])


@pytest.mark.parametrize(
    ("fit", "size"), [("squash", (200, 100)), ("squash", (70, 300)), ("crop", (300, 90))]
)
def test_random_crops_are_55_to_100_percent_of_what_the_plain_view_shows(fit, size):
    # colours tell the place: red grows to the right, green downwards
    ramp = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    ramp[..., 0] = np.linspace(0, 255, size[0])[None, :]
    ramp[..., 1] = np.linspace(0, 255, size[1])[:, None]
    image = Image.fromarray(ramp)
    preprocessing = Preprocessing(64, fit, (0, 0, 0), (1, 1, 1))

    def spans(pixels):
        red, green = pixels[0], pixels[1]
        return (red[:, -1] - red[:, 0]).mean().item(), (green[-1] - green[0]).mean().item()

    shown = preprocessing(image)
    width, height = spans(shown)
    generator = random.Random(0)
    areas, aspects = [], []
    for _ in range(200):
        view = preprocessing.augment(image, generator, mirror=False, crop=True)
        assert view[:2].min() >= shown[:2].min() - 0.03 and view[:2].max() <= shown[:2].max() + 0.03
        part_width, part_height = (
            part / whole for part, whole in zip(spans(view), (width, height), strict=True)
        )
        areas.append(part_width * part_height)
        aspects.append(part_width / part_height)
    assert 0.5 < min(areas) < 0.6 and 0.9 < max(areas) < 1.05
    assert 0.70 < min(aspects) < 0.85 and 1.18 < max(aspects) < 1.40


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("size", [(64, 64), (640, 427), (427, 640), (70, 1200), (33, 40)])
def test_the_view_of_a_view_is_the_same(fit, size):
    """So an image can be made small before it waits."""
    preprocessing = Preprocessing(64, fit, MEAN, STD)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    view = preprocessing.view(image)
    assert view.size == (64, 64)
    assert np.array_equal(preprocessing(view), preprocessing(image))
