"""A caption that appears on its photograph, word by word, as one SVG with no script.

Browsers play it inside an `<img>`, too. Letters are the reader's own; each word is fitted to the width that it has
here. It keeps still for readers who prefer reduced motion, and follows a light or a dark page.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image, ImageFont

from ddcap import Caption

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
    picture, height = _picture(photo, width - 2 * MARGIN)
    events = caption.trace.events
    numbers = {step: number for number, step in enumerate(sorted({event.step for event in events}))}
    born = {event.position: (numbers[event.step], event.probability) for event in events}
    seconds = STEP * (len(numbers) + 1) + HOLD
    words = _words(caption)
    places, lines = _lines([text for text, _ in words], width)
    top = 2 * MARGIN + height
    total = top + lines * LINE + 44
    styles, drawn = [], []
    for number, ((text, positions), (x, line, wide)) in enumerate(zip(words, places, strict=True)):
        step = max(born[position][0] for position in positions)
        begin = 100 * STEP * (step + 1) / seconds
        later = min(99.0, begin + 100 * STEP / seconds)
        styles.append(
            f"@keyframes w{number} {{ 0%, {begin:.2f}% {{ opacity: 0 }} {begin + 0.4:.2f}%, 99% {{ opacity: 1 }}"
            " 100% { opacity: 0 } }\n"
            f"    @keyframes b{number} {{ 0%, {begin:.2f}% {{ opacity: 1 }} {begin + 0.4:.2f}%, 99% {{ opacity: 0 }}"
            " 100% { opacity: 1 } }\n"
            f"    @keyframes f{number} {{ 0%, {begin:.2f}% {{ opacity: 0 }} {begin + 0.4:.2f}%, {later:.2f}%"
            f" {{ opacity: 1 }} {min(99.5, later + 2):.2f}%, 100% {{ opacity: 0 }} }}"
        )
        base = top + line * LINE + 36
        fitted = f'x="{x:.1f}" y="{base}" textLength="{wide:.1f}" lengthAdjust="spacingAndGlyphs"'
        drawn.append(
            f'<rect class="blank b" style="animation-name: b{number}" x="{x:.1f}" y="{base - 12}" '
            f'width="{wide:.1f}" height="14" rx="7"/>\n'
            f'  <text class="word w" style="animation-name: w{number}" font-size="{SIZE}" {fitted}>{escape(text)}</text>\n'
            f'  <text class="fresh f" style="animation-name: f{number}" font-size="{SIZE}" {fitted}>{escape(text)}</text>'
        )
    notes = []
    for step, number in numbers.items():
        told = ", ".join(
            f"{event.token.strip() or 'the end'} {event.probability:.0%}" for event in events if event.step == step
        )
        begin, end = (100 * STEP * (number + 1 + more) / seconds for more in (0, 1))
        if number == len(numbers) - 1:
            end = 99.0
        styles.append(
            f"@keyframes n{number} {{ 0%, {begin:.2f}% {{ opacity: 0 }} {begin + 0.2:.2f}%, {end:.2f}%"
            f" {{ opacity: 1 }} {min(100, end + 0.2):.2f}%, 100% {{ opacity: 0 }} }}"
        )
        notes.append(
            f'<text class="note n" style="animation-name: n{number}" x="{width / 2:g}" y="{total - 24}" '
            f'font-size="20" text-anchor="middle">step {number + 1} of {len(numbers)}: {escape(told)}</text>'
        )
    rules = "\n    ".join(styles)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" width="{width}" height="{total}" role="img">
  <title>{escape(caption.text)}</title>
  <desc>A photograph. Its caption begins as blanks; the words of which the model is most certain appear first.</desc>
  <style>{_STYLE}
    .w, .b, .f, .n {{ animation-duration: {seconds:.1f}s; animation-iteration-count: infinite }}
    .b, .f, .n {{ opacity: 0 }}
    {rules}
    @media (prefers-reduced-motion: reduce) {{ .w, .b, .f, .n {{ animation: none !important }} }}
  </style>
  <rect class="card" x="0.5" y="0.5" width="{width - 1}" height="{total - 1}" rx="16"/>
  <image x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{height}" href="data:image/jpeg;base64,{picture}"/>
  {chr(10).join(drawn)}
  {chr(10).join(notes)}
</svg>
"""


def _picture(photo: Path, width: int) -> tuple[str, int]:
    """A photograph `width` pixels wide as a JPEG in base64, and its height."""
    with Image.open(photo) as opened:
        height = round(opened.height * width / opened.width)
        small = opened.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80, optimize=True, progressive=True)
    return base64.b64encode(buffer.getvalue()).decode(), height


def _words(caption: Caption) -> list[tuple[str, list[int]]]:
    """Whole words with the positions of their tokens."""
    words: list[tuple[str, list[int]]] = []
    for position, piece in enumerate(caption.tokens):
        if not piece:
            continue  # the end token
        if words and not piece.startswith(" "):
            text, positions = words[-1]
            words[-1] = (text + piece, [*positions, position])
        else:
            words.append((piece.strip(), [position]))
    return words


def _lines(words: list[str], width: int) -> tuple[list[tuple[float, int, float]], int]:
    """Where each word stands: left edge, line, width; lines are centred. And how many lines there are."""
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
