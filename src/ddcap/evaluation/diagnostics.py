"""What scores do not show: how long and how varied captions are, how often they repeat or are copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ddcap.evaluation.tokenization import tokenize

_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Diagnostics:
    """Properties of a set of captions; words are those of the Python PTB tokenisation, without punctuation.

    Attributes:
        captions: number of captions.
        lengths: number of words to number of captions.
        distinct_words: number of different words used.
        copied: share of captions that are, word for word, one of the training captions; None without these.
        empty: share without a single word.
        repeated_word: share with a word right after itself ("a a dog").
        repeated_bigram: share in which two words in a row occur again ("a dog and a dog").
    """

    captions: int
    lengths: dict[int, int]
    distinct_words: int
    copied: float | None
    empty: float
    repeated_word: float
    repeated_bigram: float

    @property
    def mean_length(self) -> float:
        """Mean number of words."""
        return sum(length * count for length, count in self.lengths.items()) / self.captions

    def to_dict(self) -> dict[str, Any]:
        """Plain values; shares from 0 to 1."""
        return {
            "mean_length": round(self.mean_length, 2),
            "lengths": {str(length): count for length, count in self.lengths.items()},
            "distinct_words": self.distinct_words,
            "copied_from_training": None if self.copied is None else round(self.copied, 4),
            "empty": round(self.empty, 4),
            "repeated_word": round(self.repeated_word, 4),
            "repeated_bigram": round(self.repeated_bigram, 4),
        }

    def to_text(self) -> str:
        """One line."""
        copied = "" if self.copied is None else f"{self.copied:.1%} copied from training, "
        first, last = min(self.lengths), max(self.lengths)
        return (
            f"{self.mean_length:.1f} words ({first} {self._histogram()} {last}), "
            f"{self.distinct_words} distinct, {copied}{self.empty:.1%} empty, "
            f"{self.repeated_word:.1%} repeat a word, {self.repeated_bigram:.1%} a bigram"
        )

    def _histogram(self) -> str:
        """A bar for each length from the shortest to the longest."""
        most = max(self.lengths.values())
        counts = [self.lengths.get(length, 0) for length in range(min(self.lengths), max(self.lengths) + 1)]
        return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)


def diagnose(captions: Iterable[str], training_captions: Iterable[str] = ()) -> Diagnostics:
    """Look at captions (at least one), beside the captions that the model was trained on."""
    captions, training = list(captions), frozenset(_normalized(training_captions))
    texts = _normalized(captions)
    words = [text.split() for text in texts]
    lengths = Counter(map(len, words))

    def share(flags: Iterable[bool]) -> float:
        return sum(flags) / len(texts)

    return Diagnostics(
        captions=len(texts),
        lengths=dict(sorted(lengths.items())),
        distinct_words=len({word for caption in words for word in caption}),
        copied=share(text in training for text in texts) if training else None,
        empty=share(not caption for caption in words),
        repeated_word=share(any(first == second for first, second in pairwise(caption)) for caption in words),
        repeated_bigram=share(max(Counter(pairwise(caption)).values(), default=0) > 1 for caption in words),
    )


def _normalized(captions: Iterable[str]) -> list[str]:
    """Lower-case words without punctuation, separated by spaces."""
    texts, _ = tokenize({"": list(captions)}, "ptb-python")
    return texts[""]
