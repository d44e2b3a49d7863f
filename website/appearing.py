"""A caption that appears on its photograph, word by word, as one SVG with no script.

Browsers play it inside an `<img>`, too. Letters are the reader's own; each word is fitted to the width it
has here. It keeps still for readers who prefer reduced motion, and follows a light or a dark page.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image, ImageFont

from ddcap import Caption
from ddcap.decoding.words import word_positions

WIDTH, MARGIN, SIZE, GAP, LINE = 720, 24, 34, 12, 56
STEP, HOLD = 0.8, 3.5  # seconds a step takes, and the whole caption stays

_STYLE = """
    .card { fill: #ffffff; stroke: #d0d7de } .word { fill: #1f2328 } .note { fill: #57606a }
    .blank { fill: #d0d7de } .fresh { fill: #0b7285 }
    text { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
    @media (prefers-color-scheme: dark) {
      .card { fill: #161b22; stroke: #3d444d } .word { fill: #f0f6fc } .note { fill: #9198a1 }
      .blank { fill: #3d444d } .fresh { fill: #3fc1d4 }
    }
"""


def caption_appears(photo: Path, caption: Caption, width: int = WIDTH) -> str:
    """The SVG.

    Args:
        photo: is embedded, as a JPEG of `width` pixels less the margins.
        caption: of the photograph, with its trace.
        width: of the whole, in pixels.
    """
    image, height = _image(photo, width - 2 * MARGIN)
    events = caption.trace.events
    numbers = {step: number for number, step in enumerate(sorted({event.step for event in events}))}
    born = {event.position: numbers[event.step] for event in events}
    seconds = STEP * (len(numbers) + 1) + HOLD
    words = _words(caption)
    places, lines = _lines([text for text, _ in words], width)
    top = 2 * MARGIN + height
    total = top + lines * LINE + 44
    styles, drawn, notes = [], [], []
    for number, ((text, positions), (x, line, wide)) in enumerate(zip(words, places, strict=True)):
        begin = STEP * (1 + max(born[position] for position in positions))
        styles += [
            _shown(f"w{number}", begin, seconds, seconds),
            _shown(f"b{number}", 0, begin, seconds),
            _shown(f"f{number}", begin, begin + STEP, seconds),
        ]
        base = top + line * LINE + 36
        fitted = f'x="{x:.1f}" y="{base}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs"'
        drawn.append(
            f'<rect class="blank b" style="animation-name: b{number}" x="{x:.1f}" y="{base - 12}" '
            f'width="{wide:.1f}" height="14" rx="7"/>'
        )
        drawn += [
            f'<text class="{kind} {letter}" style="animation-name: {letter}{number}" font-size="{SIZE}" '
            f"{fitted}>{escape(text)}</text>"
            for kind, letter in (("word", "w"), ("fresh", "f"))
        ]
    for step, number in numbers.items():
        told = ", ".join(
            f"{event.token.strip() or 'the end'} {event.probability:.0%}"
            for event in events
            if event.step == step
        )
        begin = STEP * (number + 1)
        end = seconds if number == len(numbers) - 1 else begin + STEP
        styles.append(_shown(f"n{number}", begin, end, seconds))
        notes.append(
            f'<text class="note n" style="animation-name: n{number}" x="{width / 2:g}" y="{total - 24}" '
            f'font-size="20" text-anchor="middle">step {number + 1} of {len(numbers)}: {escape(told)}</text>'
        )
    inner = width - 2 * MARGIN
    return _SVG.format(
        width=width,
        height=total,
        frame=(width - 1, total - 1),
        title=escape(caption.text),
        style=_STYLE,
        seconds=seconds,
        rules="\n    ".join(styles),
        image=f'x="{MARGIN}" y="{MARGIN}" width="{inner}" height="{height}" href="{image}"',
        drawn="\n  ".join([*drawn, *notes]),
    )


_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"
  role="img">
  <title>{title}</title>
  <desc>A photograph. Its caption begins as blanks. The surest words appear first.</desc>
  <style>{style}
    .w, .b, .f, .n {{ animation-duration: {seconds:.1f}s; animation-iteration-count: infinite }}
    .b, .f, .n {{ opacity: 0 }}
    {rules}
    @media (prefers-reduced-motion: reduce) {{ .w, .b, .f, .n {{ animation: none !important }} }}
  </style>
  <rect class="card" x="0.5" y="0.5" width="{frame[0]}" height="{frame[1]}" rx="16"/>
  <image {image}/>
  {drawn}
</svg>
"""


def _shown(name: str, begin: float, end: float, seconds: float) -> str:
    """The rule of something that is seen from `begin` to `end` of an animation of so many seconds."""
    start, stop = 100 * begin / seconds, min(99.0, 100 * end / seconds)
    if begin == 0:
        stops = (
            f"0%, {stop:.2f}% {{ opacity: 1 }} {stop + 0.4:.2f}%, 99% {{ opacity: 0 }} 100% {{ opacity: 1 }}"
        )
    else:
        seen = f"{start + 0.4:.2f}%, {stop:.2f}% {{ opacity: 1 }}"
        stops = f"0%, {start:.2f}% {{ opacity: 0 }} {seen} {stop + 0.4:.2f}%, 100% {{ opacity: 0 }}"
    return f"@keyframes {name} {{ {stops} }}"


def _image(photo: Path, width: int) -> tuple[str, int]:
    """A photograph `width` pixels wide as the address of a JPEG, and its height."""
    with Image.open(photo) as opened:
        height = round(opened.height * width / opened.width)
        small = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True, progressive=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", height


def _words(caption: Caption) -> list[tuple[str, list[int]]]:
    """Whole words with the positions of their tokens."""
    return [
        ("".join(caption.tokens[position] for position in positions).strip(), positions)
        for positions in word_positions(caption.tokens)
    ]


def _lines(words: list[str], width: int) -> tuple[list[tuple[float, int, float]], int]:
    """Place each word: left edge, line, width; lines are centred. And how many lines there are."""
    font = ImageFont.load_default(SIZE)
    widths = [font.getlength(word) for word in words]
    rows: list[list[int]] = [[]]
    for number in range(len(words)):
        taken = sum(widths[other] + GAP for other in rows[-1])
        if rows[-1] and taken + widths[number] > width - 2 * MARGIN:
            rows.append([])
        rows[-1].append(number)
    places = {}
    for line, row in enumerate(rows):
        x = (width - sum(widths[number] for number in row) - GAP * (len(row) - 1)) / 2
        for number in row:
            places[number] = (x, line, widths[number])
            x += widths[number] + GAP
    return [places[number] for number in range(len(words))], len(rows)
