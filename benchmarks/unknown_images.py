"""Images that a captioner of photographs knows nothing about, drawn here.

    python benchmarks/unknown_images.py FOLDER [--kinds fit|test] [--each 40]

Two disjoint sets of kinds, so that a calibrator which has seen one is tested with the other:

- fit: blank images, noise, patterns, line charts, pages of text, shapes, source code on a screen;
- test: heat maps and pie charts, windows and dialogs, stick figures, maps, sheets of music, fractals, QR-like
  squares, and, where `pydicom` is installed, the medical images that it brings (CT, MR, ultrasound).
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SIZE = (320, 240)
_WORDS = """
the quarterly report shows that revenue rose while costs fell in every region and the board has decided to
keep the present plan until the next meeting where members will discuss supply orders delays and staff
""".split()  # noqa: SIM905 (easier to read)
Random = np.random.Generator


def _font(size: int, mono: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
    return ImageFont.truetype(font_manager.findfont(family), size)


def _colour(random: Random, low: int = 0, high: int = 256) -> tuple[int, ...]:
    return tuple(int(value) for value in random.integers(low, high, 3))


def _canvas(colour: tuple[int, ...] = (255, 255, 255)) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", SIZE, colour)
    return image, ImageDraw.Draw(image)


def _text(random: Random, count: int) -> str:
    return " ".join(_WORDS[number] for number in random.integers(0, len(_WORDS), count))


def _plot(draw: Callable) -> Image.Image:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 3), dpi=80)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pyplot.close(figure)
    return Image.open(buffer).convert("RGB")


# Kinds that a calibrator is fitted with.


def blank(random: Random) -> Image.Image:
    if random.random() < 0.5:
        return _canvas(_colour(random))[0]
    left, right = (np.array(_colour(random)) for _ in range(2))
    share = np.linspace(0, 1, SIZE[0])[None, :, None]
    return Image.fromarray(np.tile(left * (1 - share) + right * share, (SIZE[1], 1, 1)).astype(np.uint8))


def noise(random: Random) -> Image.Image:
    small = max(1, int(random.choice([1, 1, 4, 16, 40])))
    values = random.integers(0, 256, (SIZE[1] // small, SIZE[0] // small, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(SIZE, Image.Resampling(int(random.choice([0, 3]))))


def pattern(random: Random) -> Image.Image:
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    angle, period = random.random() * math.pi, random.integers(8, 60)
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * 2 * math.pi / period)
    if random.random() < 0.5:
        wave = wave * np.sin((x * math.sin(angle) - y * math.cos(angle)) * 2 * math.pi / period)
    share = (wave > 0)[..., None] if random.random() < 0.5 else (wave[..., None] + 1) / 2
    left, right = (np.array(_colour(random)) for _ in range(2))
    return Image.fromarray((left * share + right * (1 - share)).astype(np.uint8))


def line_chart(random: Random) -> Image.Image:
    def draw(axes):
        for _ in range(random.integers(1, 5)):
            axes.plot(np.cumsum(random.normal(size=50)))
        axes.grid(bool(random.integers(2)))
        axes.set_title(_text(random, 3))

    return _plot(draw)


def page(random: Random) -> Image.Image:
    image, draw = _canvas(_colour(random, 225))
    size = int(random.integers(8, 18))
    for row in range(8, SIZE[1] - size, size + 4):
        if random.random() < 0.9:
            draw.text((12, row), _text(random, 12), fill=_colour(random, 0, 60), font=_font(size))
    return image


def shapes(random: Random) -> Image.Image:
    image, draw = _canvas(_colour(random, 180))
    for _ in range(random.integers(2, 9)):
        corner = random.integers(0, 240, 2)
        far = corner + random.integers(20, 120, 2)
        box = [int(value) for value in (*corner, *far)]
        getattr(draw, str(random.choice(["ellipse", "rectangle"])))(
            box, fill=_colour(random), outline=(0, 0, 0)
        )
    return image


def code(random: Random) -> Image.Image:
    image, draw = _canvas(_colour(random, 10, 50))
    for row in range(6, SIZE[1] - 10, 14):
        left = 8 + 16 * int(random.integers(0, 5))
        for word in _text(random, 6).split():
            draw.text((left, row), word, fill=_colour(random, 110), font=_font(11, mono=True))
            left += 8 * len(word) + 8
    return image


# Kinds that it is tested with.


def heat_map(random: Random) -> Image.Image:
    def draw(axes):
        if random.random() < 0.5:
            axes.imshow(random.normal(size=(12, 12)), cmap=str(random.choice(["viridis", "hot", "coolwarm"])))
        else:
            axes.pie(random.random(5) + 0.1, labels=_WORDS[:5])

    return _plot(draw)


def window(random: Random) -> Image.Image:
    image, draw = _canvas(_colour(random, 160, 230))
    left, top = (int(value) for value in random.integers(10, 50, 2))
    draw.rectangle([left, top, 300, 215], fill=(245, 245, 245), outline=(90, 90, 90))
    draw.rectangle([left, top, 300, top + 18], fill=_colour(random, 40, 160))
    draw.text((left + 6, top + 2), _text(random, 3), fill=(255, 255, 255), font=_font(11))
    for row in range(top + 28, 180, 24):
        draw.text((left + 12, row), _text(random, 2), fill=(30, 30, 30), font=_font(11))
        draw.rectangle([left + 120, row, 280, row + 15], fill=(255, 255, 255), outline=(150, 150, 150))
    draw.rectangle([215, 190, 285, 208], fill=_colour(random, 60, 200))
    return image


def stick_figure(random: Random) -> Image.Image:
    image, draw = _canvas()
    for _ in range(random.integers(1, 4)):
        x, y, size = int(random.integers(40, 270)), int(random.integers(30, 80)), int(random.integers(12, 24))
        width = int(random.integers(1, 4))
        draw.ellipse([x - size, y - size, x + size, y + size], outline=(0, 0, 0), width=width)
        draw.line([x, y + size, x, y + 4 * size], fill=(0, 0, 0), width=width)
        for side in (-1, 1):
            draw.line([x, y + 4 * size, x + side * size, y + 6 * size], fill=(0, 0, 0), width=width)
            arm = y + int(random.integers(1, 4)) * size
            draw.line([x, y + 2 * size, x + side * 2 * size, arm], fill=(0, 0, 0), width=width)
    return image


def street_map(random: Random) -> Image.Image:
    image, draw = _canvas((235, 230, 215))
    for _ in range(6):
        centre = random.integers(0, 320, 2)
        corners = [(int(x), int(y)) for x, y in centre + random.integers(-70, 70, (6, 2))]
        draw.polygon(corners, fill=tuple(random.choice([[190, 220, 170], [170, 205, 235], [225, 210, 190]])))
    for _ in range(random.integers(8, 20)):
        ends = [int(value) for value in random.integers(-20, 340, 4)]
        draw.line(ends, fill=(200, 190, 180), width=7)
        draw.line(ends, fill=(255, 255, 250), width=5)
    return image


def music(random: Random) -> Image.Image:
    image, draw = _canvas()
    for staff in range(20, 210, 60):
        for row in range(5):
            draw.line([10, staff + 6 * row, 310, staff + 6 * row], fill=(0, 0, 0))
        for x in range(25, 300, int(random.integers(14, 30))):
            y = staff + int(random.integers(-1, 9)) * 3
            draw.ellipse([x, y - 3, x + 8, y + 3], fill=(0, 0, 0))
            draw.line([x + 8, y, x + 8, y - 20], fill=(0, 0, 0))
    return image


def fractal(random: Random) -> Image.Image:
    width = 3.0 / float(random.integers(1, 60))
    centre = complex(*random.choice([[-0.745, 0.113], [-0.16, 1.035], [-0.7, 0.0], [-1.25, 0.02]]))
    x, y = np.meshgrid(np.linspace(-width, width, SIZE[0]), np.linspace(-width, width, SIZE[1]))
    c = centre + x + 1j * y
    z, count = np.zeros_like(c), np.zeros(c.shape)
    for _ in range(60):
        inside = np.abs(z) < 4
        z[inside] = z[inside] ** 2 + c[inside]
        count += inside
    phase = random.random(3) * 6
    return Image.fromarray((127 * (1 + np.sin(count[..., None] / 6 + phase))).astype(np.uint8))


def squares(random: Random) -> Image.Image:
    side = int(random.integers(21, 41))
    values = (random.random((side, side)) < 0.5).astype(np.uint8) * 255
    for top, left in ((0, 0), (0, side - 7), (side - 7, 0)):
        values[top : top + 7, left : left + 7] = 0
        values[top + 1 : top + 6, left + 1 : left + 6] = 255
        values[top + 2 : top + 5, left + 2 : left + 5] = 0
    return ImageOps.expand(Image.fromarray(values).resize((220, 220), 0).convert("RGB"), 10, "white")


def medical(random: Random) -> Image.Image:
    """A medical image that `pydicom` brings, cut, turned and softened by chance."""
    import warnings

    import pydicom
    from pydicom.data import get_testdata_file

    name = str(random.choice(_MEDICAL))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = pydicom.dcmread(get_testdata_file(name)).pixel_array.astype(float)
    low, high = np.quantile(values, [0.01, 0.995])
    image = Image.fromarray((255 * ((values - low) / (high - low + 1e-6)).clip(0, 1)).astype(np.uint8))
    width, height = image.size
    cut = (random.random(4) * [width / 6, height / 6, width / 6, height / 6]).astype(int)
    image = image.crop((int(cut[0]), int(cut[1]), width - int(cut[2]), height - int(cut[3])))
    image = ImageOps.mirror(image) if random.random() < 0.5 else image
    image = image.resize((max(200, image.width), max(200, image.height)))
    return image.filter(ImageFilter.GaussianBlur(float(random.random()))).convert("RGB")


_MEDICAL = ["CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "examples_overlay.dcm"]
KINDS: dict[str, tuple[Callable[[Random], Image.Image], ...]] = {
    "fit": (blank, noise, pattern, line_chart, page, shapes, code),
    "test": (heat_map, window, stick_figure, street_map, music, fractal, squares, medical),
}


def draw_all(folder: Path, kinds: str, each: int, seed: int = 0) -> list[Path]:
    """Write `each` images of every kind; the same seed draws the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in KINDS[kinds]:
        for number in range(each):
            random = np.random.default_rng([seed, number, *kind.__name__.encode()])
            try:
                image = kind(random)
            except ImportError:
                print(f"{kind.__name__}: left out, pydicom is not installed")
                break
            written.append(folder / f"{kind.__name__}_{number:03}.png")
            image.save(written[-1])
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", choices=[*KINDS], default="test")
    parser.add_argument("--each", type=int, default=40)
    options = parser.parse_args()
    print(f"{len(draw_all(options.folder, options.kinds, options.each))} images in {options.folder}")


if __name__ == "__main__":
    main()
