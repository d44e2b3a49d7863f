"""Colours, counts and actions: how many of those that captions say are right.

    python benchmarks/attributes.py dataset.json PREDICTIONS.json ...

PREDICTIONS are from `ddcap evaluate --predictions`, of the split val. A word is right if any of the image's
human captions says it: the same colour ("grey" is "gray"), the same count, or any form of the same verb.
Actions are words in -ing that are forms of verbs among the default's concepts. The first rows are people: one
caption of each image against its others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from ddcap.data.concepts import ConceptVocabulary
from ddcap.data.records import load_karpathy
from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.evaluation.result import leave_one_out
from ddcap.evaluation.run import load_predictions
from ddcap.publishing import find_model

_COLOURS = {
    *(
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "black",
        "white",
        "gray",
        "grey",
    ),
    *("tan", "beige", "silver", "gold", "golden", "blonde"),
}
_COUNTS = {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}


def main() -> None:
    """Print a row for each kind and file."""
    path, *files = sys.argv[1:]
    vocabulary = ConceptVocabulary.load(find_model("default"))

    def actions(caption: str, *, all_forms: bool) -> set[str]:
        words = _words(caption)
        if not all_forms:  # "standing" is a form of another word, "building" is none
            words = [word for word in words if word.endswith("ing") and word in vocabulary.forms]
        numbers = (vocabulary.number(word) for word in words)
        return {vocabulary.words[number] for number in numbers if number is not None}

    kinds: dict[str, tuple[Callable[[str], set[str]], Callable[[str], set[str]]]] = {
        "colours": (lambda one: _said(one, _COLOURS), lambda one: _said(one, _COLOURS)),
        "counts": (lambda one: _said(one, _COUNTS), lambda one: _said(one, _COUNTS)),
        "actions": (lambda one: actions(one, all_forms=False), lambda one: actions(one, all_forms=True)),
    }
    references = {one.image_id: one.captions for one in load_karpathy(path, ".", "val")}
    held_out, rest = leave_one_out(references)
    rows: list[tuple[str, Mapping[str, str], Mapping[str, Sequence[str]]]] = [("people", held_out, rest)]
    rows += [(file, load_predictions(file), references) for file in files]
    for name, captions, truth in rows:
        for kind, (found_in, known_in) in kinds.items():
            said = {image: found_in(caption) for image, caption in captions.items()}
            right = [len(said[i] & set().union(*map(known_in, truth[i]))) for i in said]
            total = [len(said[i]) for i in said]
            shares = [good / max(count, 1) for good, count in zip(right, total, strict=True)]
            low, high = bootstrap_interval(shares, weights=[float(count) for count in total])
            figure = f"{sum(right)} of {sum(total)}, {100 * sum(right) / max(sum(total), 1):.1f} %"
            print(f"{name:30} {kind:8} {figure} [{100 * low:.1f}, {100 * high:.1f}]")


def _words(caption: str) -> list[str]:
    return [word.strip(".,;:!?\"'").lower() for word in caption.split()]


def _said(caption: str, words: set[str]) -> set[str]:
    return {"gray" if word == "grey" else word for word in _words(caption) if word in words}


if __name__ == "__main__":
    main()
