"""What a tagger is trained on: evidence about pictures, and the concepts that captions or labels name.

Shapes: R pictures, E numbers of evidence, N concepts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.karpathy import CaptionedImage
from ddcap.errors import RecipeError
from ddcap.model.tagging_encoder import TaggingEncoder
from ddcap.recipe import Recipe
from ddcap.training.setup import ProgressBar


@dataclass(frozen=True)
class Evidence:
    """Pictures as the tagger sees them.

    Attributes:
        seen: (R, views, E).
        named: (R, N) share of each picture's captions that name a concept.
        asked: (R, N) True where that is known: a label says nothing of what it is not about.
    """

    seen: Tensor
    named: Tensor
    asked: Tensor

    def rows(self, chosen: Tensor) -> Evidence:
        """Some of the pictures."""
        return Evidence(self.seen[chosen], self.named[chosen], self.asked[chosen])

    def followed_by(self, other: Evidence | None) -> Evidence:
        """These pictures, then those of `other`."""
        if other is None:
            return self
        pairs = ((self.seen, other.seen), (self.named, other.named), (self.asked, other.asked))
        return Evidence(*(torch.cat(pair) for pair in pairs))


def read_class_words(path: Path, vocabulary: ConceptVocabulary) -> list[tuple[int, int, float]]:
    """Rows (class, concept, weight) of a JSON {class: {words: {word: weight}}} of concepts."""
    try:
        classes = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (int(number), vocabulary.number(word), float(weight))
            for number, entry in classes.items()
            for word, weight in entry["words"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"tagger.class_words={path}: cannot be read ({error})") from None
    return [(number, concept, weight) for number, concept, weight in rows if concept is not None]


def named_shares(records: Sequence[CaptionedImage], vocabulary: ConceptVocabulary) -> Tensor:
    """(R, N) share of each record's captions that name a concept."""
    named = torch.zeros(len(records), len(vocabulary))
    for row, record in enumerate(records):
        for concept, share in vocabulary.shares(record.captions).items():
            named[row, concept] = share
    return named


def captioned_evidence(
    records: Sequence[CaptionedImage], cache: FeatureCache, views: int, vocabulary: ConceptVocabulary
) -> Evidence:
    """Of captioned pictures, in their order."""
    seen = [torch.stack([cache.read(row, view)[1] for view in range(views)]) for row in range(len(records))]
    named = named_shares(records, vocabulary)
    return Evidence(torch.stack(seen), named, torch.ones_like(named, dtype=torch.bool))


def labelled_evidence(
    recipe: Recipe,
    encoder: TaggingEncoder,
    vocabulary: ConceptVocabulary,
    progress_bar: ProgressBar,
    views: int,
) -> Evidence | None:
    """Pictures with labels; each set is asked about the concepts that any of its labels names."""
    if recipe.tagger.labelled is None:
        return None
    assert recipe.data.cache is not None
    root = Path(recipe.data.root)
    entries = read_labelled(root / recipe.tagger.labelled)
    folder = root / recipe.data.images
    paths = [folder / entry.get("filepath", "") / entry["filename"] for entry in entries]
    cache = FeatureCache(recipe.data.cache, encoder, paths, 1, progress_bar, bf16=recipe.training.bf16)
    seen = torch.stack([cache.read(row, 0)[1] for row in range(len(paths))])
    named = torch.zeros(len(entries), len(vocabulary))
    for row, entry in enumerate(entries):
        for label in entry["labels"]:
            named[row, vocabulary.find(label)] = 1.0
    asked = torch.zeros_like(named, dtype=torch.bool)
    sets = [entry.get("set", "") for entry in entries]
    for name in set(sets):
        rows = torch.tensor([own == name for own in sets])
        asked[rows] = (named[rows] > 0).any(dim=0)
    return Evidence(seen.unsqueeze(1).expand(-1, views, -1), named, asked)


def read_labelled(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON {images: [{filepath, filename, set, labels}]}.

    Raises:
        RecipeError: if it is none.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        for entry in entries:
            str(entry["filename"]), list(entry["labels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"tagger.labelled={path}: cannot be read ({error!r})") from None
    return list(entries)
