"""Measure what concepts are worth to a model that sees them: CIDEr with evidence taken away, or perfect.

    python benchmarks/concepts.py MODEL --data dataset.json --images FOLDER [--split val] [--limit N]

Every row is compared with the first by a paired bootstrap over images. The oracle sees, in place of the
tagger's concepts, those that at least two of an image's human captions name: a ceiling, not a result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from ddcap import Captioner
from ddcap.data.concepts import NO_CONCEPT, ConceptTokens, ConceptVocabulary, stack_concepts
from ddcap.data.records import CaptionedImage, load_karpathy
from ddcap.decoding.generate import generate
from ddcap.evaluation.metrics import bootstrap_interval, score_captions
from ddcap.model.features import ImageFeatures

AT_ONCE = 25
_OFF = {"concept_bonus": 0.0, "repeat_penalty": 0.0, "concept_weight": 0.0}
Seen = list[tuple[Sequence[CaptionedImage], ImageFeatures]]
View = Callable[[Sequence[CaptionedImage], ImageFeatures], ImageFeatures]


def look(captioner: Captioner, records: Sequence[CaptionedImage]) -> Iterator[tuple[Any, ImageFeatures]]:
    """Some images and their features, in order."""
    for start in range(0, len(records), AT_ONCE):
        part = records[start : start + AT_ONCE]
        yield part, captioner.features([record.path for record in part])


def caption(captioner: Captioner, seen: Seen, view: View, changes: dict[str, Any]) -> dict[str, str]:
    """Image id to caption, of images as `view` lets the model see them."""
    settings = replace(captioner.decoding, **changes)
    captions: dict[str, str] = {}
    for records, features in seen:
        with captioner.computing():
            result = generate(captioner.model, view(records, features), settings, captioner.tokenizer.end_id)
        texts = [captioner.tokenizer.decode(ids) for ids in result.tokens.tolist()]
        captions.update(zip((record.image_id for record in records), texts, strict=True))
    return captions


def as_seen(_: Sequence[CaptionedImage], features: ImageFeatures) -> ImageFeatures:
    """Nothing changed."""
    return features


def without_concepts(_: Sequence[CaptionedImage], features: ImageFeatures) -> ImageFeatures:
    """The image positions only."""
    assert features.concepts is not None
    nothing = torch.full_like(features.concepts.ids, NO_CONCEPT)
    return replace(features, concepts=ConceptTokens(nothing, features.concepts.confidences))


def without_image(_: Sequence[CaptionedImage], features: ImageFeatures) -> ImageFeatures:
    """The tagger's concepts only."""
    return ImageFeatures(None, None, features.concepts)


def oracle(vocabulary: ConceptVocabulary) -> View:
    """A view with the concepts that at least two human captions name, as sure as their share."""

    def view(records: Sequence[CaptionedImage], features: ImageFeatures) -> ImageFeatures:
        assert features.concepts is not None
        rows = [
            sorted(
                (
                    (c, share)
                    for c, share in vocabulary.shares(r.captions).items()
                    if share > 1.5 / len(r.captions)
                ),
                key=lambda pair: -pair[1],
            )
            for r in records
        ]
        return replace(features, concepts=stack_concepts(rows, features.concepts.ids.shape[1]))

    return view


def main() -> None:
    """Print a row for each way to see."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    captioner = Captioner.from_pretrained(options.model, runtime="torch")
    vocabulary = captioner.model.vocabulary
    if vocabulary is None:
        parser.error(f"{options.model} sees no concepts")
    records = load_karpathy(options.data, options.images, options.split)[: options.limit]
    references = {record.image_id: record.captions for record in records}
    seen = list(look(captioner, records))
    ways: list[tuple[str, View, dict[str, Any]]] = [
        ("as it is", as_seen, {}),
        ("no say while decoding", as_seen, _OFF),
        ("no bonus", as_seen, {"concept_bonus": 0.0}),
        ("no penalty for repeats", as_seen, {"repeat_penalty": 0.0}),
        ("no weight among candidates", as_seen, {"concept_weight": 0.0}),
        ("image only", without_concepts, _OFF),
        ("concepts only", without_image, {}),
        ("oracle concepts", oracle(vocabulary), {}),
    ]
    first: list[float] = []
    print(
        f"{len(records)} images of split {options.split}; CIDEr, 95 % interval; difference to the first row"
    )
    for name, view, changes in ways:
        scores = score_captions(caption(captioner, seen, view, changes), references)
        each = scores.per_image["CIDEr"]
        first = first or each
        low, high = bootstrap_interval(each)
        line = f"{name:<28} {scores.metrics['CIDEr']:6.1f} [{low:.1f}, {high:.1f}]"
        if each is not first:
            difference = [value - base for value, base in zip(each, first, strict=True)]
            low, high = bootstrap_interval(difference)
            line += f"  {sum(difference) / len(difference):+6.1f} [{low:+.1f}, {high:+.1f}]"
        print(line, flush=True)


if __name__ == "__main__":
    main()
