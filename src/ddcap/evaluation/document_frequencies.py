"""In how many images' references each n-gram occurs: what CIDEr weighs n-grams by, kept in a file of its own.

Source: Vedantam et al., CIDEr (2015), equation 1. The same captions score differently under other
frequencies, so those of the whole split are used for its subsets too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ddcap.errors import DataError, MissingExtraError
from ddcap.evaluation.json_file import read_json, write_json

_FORMAT, _VERSION = "ddcap document frequencies", 1


@dataclass(frozen=True)
class DocumentFrequencies:
    """Document frequencies of n-grams of one to four tokenised words.

    Attributes:
        counts: n-gram to the number of images with a reference that holds it; 0 for all others.
        images: number of images counted.
        source: whose references these are, for people to read.
    """

    counts: Counter[tuple[str, ...]]
    images: int
    source: str

    @classmethod
    def count(cls, references: Mapping[str, Sequence[str]], source: str) -> DocumentFrequencies:
        """Count the tokenised `references` (image id to captions), as pycocoevalcap does.

        Raises:
            MissingExtraError: if pycocoevalcap is not installed.
        """
        try:
            from pycocoevalcap.cider.cider_scorer import CiderScorer
        except ImportError:
            raise MissingExtraError("scoring captions", "eval") from None
        scorer = CiderScorer()
        for captions in references.values():
            scorer += (None, list(captions))
        scorer.compute_doc_freq()
        counts = {ngram: int(count) for ngram, count in scorer.document_frequency.items()}
        return cls(Counter(counts), len(references), source)

    @cached_property
    def digest(self) -> str:
        """The same for the same frequencies, whatever they are called."""
        lines = sorted(f"{' '.join(ngram)}\t{count}" for ngram, count in self.counts.items())
        return hashlib.sha256("\n".join([str(self.images), *lines]).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What a result says of its frequencies."""
        return {"source": self.source, "images": self.images, "digest": self.digest}

    def save(self, path: str | Path) -> None:
        """Write a JSON file that `load` reads.

        Raises:
            DataError: if it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "source": self.source,
            "images": self.images,
            "document_frequencies": {" ".join(ngram): count for ngram, count in sorted(self.counts.items())},
        }
        write_json(path, content, indent=0)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is missing or something else.
        """
        remedy = "give a file written by --save-idf"
        content = read_json(path, remedy)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f"{path}: holds no document frequencies; {remedy}")
        if content.get("version") != _VERSION:
            raise DataError(
                f"{path}: version {content.get('version')!r}, this ddcap reads {_VERSION}; write it anew"
            )
        counts, images = content.get("document_frequencies"), content.get("images")
        if (
            not isinstance(images, int)
            or not isinstance(counts, dict)
            or not _whole([images, *counts.values()])
        ):
            raise DataError(f"{path}: its counts are damaged; write it anew by --save-idf")
        return cls(
            Counter({tuple(ngram.split(" ")): count for ngram, count in counts.items()}),
            images,
            str(content.get("source", path)),
        )


def _whole(values: Any) -> bool:
    return all(type(value) is int and value > 0 for value in values)
