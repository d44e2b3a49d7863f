"""Photographs with what people wrote, and what the diffusion model and its twin say: the report's gallery."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from ddcap.captioner import Captioner
from ddcap.data.images import load_image
from ddcap.data.records import CaptionedImage
from ddcap.decoding.caption import Caption
from ddcap.decoding.words import word_positions

_WIDEST = 320  # pixels of an embedded photograph's longer side


@dataclass(frozen=True)
class ShownWord:
    """One word of a caption.

    Attributes:
        text: the word.
        confidence: the lowest probability of its tokens when they were committed.
        order: when it was complete, from 1: words of one step have the same number.
    """

    text: str
    confidence: float
    order: int


@dataclass(frozen=True)
class Exhibit:
    """One photograph of the gallery.

    Attributes:
        image: the photograph as a data URI.
        human: what people wrote.
        ours: words of the diffusion model's caption.
        twin: words of the autoregressive model's caption; empty without one.
    """

    image: str
    human: tuple[str, ...]
    ours: tuple[ShownWord, ...]
    twin: tuple[ShownWord, ...]


def choose_evenly(records: Sequence[CaptionedImage], count: int) -> list[CaptionedImage]:
    """`count` records spread evenly over a split: nobody picked the good ones."""
    count = min(count, len(records))
    return [records[number * len(records) // count] for number in range(count)]


def make_gallery(records: Sequence[CaptionedImage], ours: Captioner, twin: Captioner | None) -> list[Exhibit]:
    """Caption some photographs and prepare them for a page.

    Raises:
        ImageError: if one cannot be read.
    """
    paths = [record.path for record in records]
    our_captions = ours(paths)
    twin_captions = twin(paths) if twin is not None else [None] * len(paths)
    return [
        Exhibit(
            image=_data_uri(record),
            human=record.captions,
            ours=shown_words(our_caption),
            twin=shown_words(twin_caption) if twin_caption is not None else (),
        )
        for record, our_caption, twin_caption in zip(records, our_captions, twin_captions, strict=True)
    ]


def shown_words(caption: Caption) -> tuple[ShownWord, ...]:
    """The words of a caption, up to its first end token; a word's tokens are joined."""
    last_step = {event.position: event.step for event in caption.trace.events}
    words = [
        (
            "".join(caption.tokens[position] for position in positions).strip(),
            min(caption.confidences[position] for position in positions),
            max(last_step.get(position, -1) for position in positions),
        )
        for positions in word_positions(caption.tokens)
    ]
    ranks = {step: rank for rank, step in enumerate(sorted({step for _, _, step in words}), start=1)}
    return tuple(ShownWord(text, confidence, ranks[step]) for text, confidence, step in words)


def _data_uri(record: CaptionedImage) -> str:
    image = load_image(record.path)
    image.thumbnail((_WIDEST, _WIDEST))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
