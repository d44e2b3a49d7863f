"""Errors by order of commitment: does best-first inference go wrong at its first words or at its last?

A word is committed with the last of its tokens. What is counted, by tenths of a caption's commitments:

- content words (`ddcap.decoding.words.FUNCTION_WORDS` are the others), and those that no human caption of the
  image has. Spelling decides: another word for the same thing, or its plural, counts as unsupported.
- words again: content words that the caption had already when they were committed.
- right words: content words that are neither.
- words beside themselves: any words that were committed next to the same word.
- the probability of a content word when its tokens were committed.

The twin commits from left to right, so that its tenths are places in the caption.

Shapes: B captions, L positions, S steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ddcap.captioner import Captioner
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.decoding.trace import DecodingResult
from ddcap.decoding.words import FUNCTION_WORDS, words_in
from ddcap.evaluation.metrics import SAMPLES
from ddcap.settings import DecodingSettings
from experiments.split import Split

TENTHS = 10


@dataclass(frozen=True)
class Word:
    """A word of a decoded caption, and how it came about.

    Attributes:
        text: in small letters.
        tenth: of the caption's commitments, from 0, in which it was complete.
        probability: of its tokens when they were committed.
        again: a content word that the caption had already.
        beside_itself: next to the same word, which was there before.
    """

    text: str
    tenth: int
    probability: float
    again: bool
    beside_itself: bool

    @property
    def is_content(self) -> bool:
        """Tell whether it says what is in the image."""
        return self.text not in FUNCTION_WORDS


def commitment_ranks(result: DecodingResult, row: int) -> list[int]:
    """Rank the positions of caption `row` by their commitment, from 0; of one step, the surest first."""
    length = int(result.lengths[row])
    history = result.history[:, row, :length]
    final, confidences = result.tokens[row, :length], result.confidences[row, :length].tolist()
    # a token that was committed stays: it was MASK, or for the twin, before as often as its step says
    steps = (history != final).sum(axis=0).tolist()
    order = sorted(range(length), key=lambda place: (steps[place], -confidences[place]))
    ranks = [0] * length
    for rank, place in enumerate(order):
        ranks[place] = rank
    return ranks


def words_of(result: DecodingResult, row: int, tokenizer: CaptionTokenizer) -> list[Word]:
    """The words of caption `row`, up to its first end token, from left to right."""
    ids = result.tokens[row, : int(result.lengths[row])].tolist()
    ranks, confidences = commitment_ranks(result, row), result.confidences[row].tolist()
    pieces = tokenizer.pieces(ids)
    places = words_in(ids, tokenizer)
    last = next((number for number, own in enumerate(places) if ids[own[0]] == tokenizer.end_id), len(places))
    places = places[:last]
    texts = ["".join(pieces[place] for place in own).strip().lower() for own in places]
    when = [max(ranks[place] for place in own) for own in places]
    found = []
    for number, (own, text) in enumerate(zip(places, texts, strict=True)):
        same = [other for other, told in enumerate(texts) if told == text and when[other] < when[number]]
        found.append(
            Word(
                text=text,
                tenth=TENTHS * when[number] // len(ids),
                probability=float(np.prod([confidences[place] for place in own])),
                again=text not in FUNCTION_WORDS and bool(same),
                beside_itself=any(abs(other - number) == 1 for other in same),
            )
        )
    return found


@torch.no_grad()
def decoded_words(captioner: Captioner, settings: DecodingSettings, split: Split) -> Iterator[list[Word]]:
    """Each image's caption as words."""
    generator = np.random.default_rng(0)
    for records, features in split.batches(captioner):
        end_id = captioner.tokenizer.end_id
        result = generate(captioner.model, features, settings, end_id, generator=generator)
        for row in range(len(records)):
            yield words_of(result, row, captioner.tokenizer)


def commitment(
    captioners: dict[str, Captioner], settings: dict[str, DecodingSettings], split: Split
) -> dict[str, Any]:
    """Count what goes wrong, by tenths of the commitments and in all, for row "g" and its "twin"."""
    found: dict[str, Any] = {"pictures": len(split.records)}
    for row, captioner in captioners.items():
        said = [_said(record.captions, captioner.tokenizer) for record in split.records]
        captions = list(decoded_words(captioner, settings[row], split))
        found[row] = {
            "tenths": [
                _rates([[word for word in words if word.tenth == tenth] for words in captions], said)
                for tenth in range(TENTHS)
            ],
            "all": _rates(captions, said),
        }
    return found


def _said(captions: Sequence[str], tokenizer: CaptionTokenizer) -> frozenset[str]:
    """The words of an image's human captions, spelled as the tokenizer spells them."""
    texts = [tokenizer.decode(ids) for ids in tokenizer.encode_batch(captions)]
    return frozenset(word for text in texts for word in text.lower().split())


def _rates(captions: Sequence[Sequence[Word]], said: Sequence[frozenset[str]]) -> dict[str, Any]:
    """Shares of words, each a mean over all words with its interval over images."""
    content = [[word for word in words if word.is_content] for words in captions]
    unsupported, right = (
        [[is_so(word, told) for word in words] for words, told in zip(content, said, strict=True)]
        for is_so in (_is_unsupported, _is_right)
    )
    return {
        "words": sum(map(len, captions)),
        "content_words": sum(map(len, content)),
        "content": rate([[word.is_content for word in words] for words in captions]),
        "unsupported": rate(unsupported),
        "right": rate(right),
        "again": rate([[word.again for word in words] for words in content]),
        "beside_itself": rate([[word.beside_itself for word in words] for words in captions]),
        "probability": rate([[word.probability for word in words] for words in content]),
    }


def _is_unsupported(word: Word, said: frozenset[str]) -> bool:
    return word.text not in said


def _is_right(word: Word, said: frozenset[str]) -> bool:
    return word.text in said and not word.again


def rate(values: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """The mean over all values of all images, and its 95 % interval when images are drawn anew.

    An image with more values counts more. None where there is no value.
    """
    sums, counts = (
        np.array([function(own) for own in values], dtype=np.float64)
        for function in (lambda own: float(sum(own)), len)
    )
    if not counts.sum():
        return {"mean": None, "interval_95": None}
    drawn = np.random.default_rng(seed).integers(len(sums), size=(SAMPLES, len(sums)))
    many = counts[drawn].sum(axis=1)
    means = sums[drawn].sum(axis=1)[many > 0] / many[many > 0]
    return {
        "mean": float(sums.sum() / counts.sum()),
        "interval_95": [float(end) for end in np.quantile(means, [0.025, 0.975])],
    }
