"""Draw a photograph and the steps that wrote its caption, as a PNG.

    python examples/draw_trace.py examples/photos/chelsea.jpg trace.png

Each row is a step of best-first decoding. The colour of a new word shows its probability.
"""

import argparse

from PIL import Image, ImageDraw, ImageFont

from ddcap import Caption, Captioner
from ddcap.data.images import load_image

HEIGHT, MARGIN, ROW, SIZE = 420, 24, 30, 19
INK, FAINT, PAPER = "#1f2328", "#c4c9d0", "white"
COLOURS = ((0.25, "#cf222e"), (0.5, "#bc4c00"), (0.75, "#9a6700"), (0.9, "#4d8b31"), (1.01, "#116329"))


def colour(probability: float) -> str:
    """The colour of a probability, from red (low) to green (high)."""
    return next(shade for limit, shade in COLOURS if probability < limit)


def draw(photo: Image.Image, caption: Caption) -> Image.Image:
    """Draw the photograph on the left, the steps on the right, and the caption below the steps."""
    font, bold = ImageFont.load_default(SIZE), ImageFont.load_default(SIZE + 5)
    frames = caption.trace.frames
    height = max(HEIGHT, ROW * (len(frames) + 2) + 2 * MARGIN)
    photo = photo.resize((round(photo.width * (height - 2 * MARGIN) / photo.height), height - 2 * MARGIN))
    # the end token is not drawn; every position has a column as wide as its final piece
    columns = [position for position, piece in enumerate(caption.tokens) if piece]
    widths = {position: font.getlength(caption.tokens[position]) + 2 for position in columns}
    left = photo.width + 2 * MARGIN
    width = int(max(sum(widths.values()), bold.getlength(caption.text))) + 2 * MARGIN + left
    sheet = Image.new("RGB", (width, height), PAPER)
    sheet.paste(photo, (MARGIN, MARGIN))
    pen = ImageDraw.Draw(sheet)
    born = {event.position: (event.step, event.probability) for event in caption.trace.events}
    steps = sorted({event.step for event in caption.trace.events})
    y = MARGIN
    for frame, step in zip(frames, steps, strict=True):
        x = float(left)
        for position in columns:
            at, probability = born[position]
            if at > step:
                dot = x + widths[position] / 2
                pen.ellipse((dot - 2, y + ROW / 2 - 4, dot + 2, y + ROW / 2), fill=FAINT)
            else:
                pen.text((x, y), frame[position], font=font, fill=colour(probability) if at == step else INK)
            x += widths[position]
        y += ROW
    pen.text((left + font.getlength(" "), y + ROW // 2), caption.text, font=bold, fill=INK)
    return sheet


def main() -> None:
    """Caption the photograph, draw the steps, save the image."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", help="image file")
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--model", default="default", help="load this model: 'default', a folder or a Hub id")
    options = parser.parse_args()
    caption = Captioner.from_pretrained(options.model)(options.photo)[0]
    draw(load_image(options.photo), caption).save(options.output)
    print(caption.text)


if __name__ == "__main__":
    main()
