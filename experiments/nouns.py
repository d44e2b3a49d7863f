"""Do a caption's nouns agree with the human captions of its image? A judge that is not CIDEr.

Nouns are what HanTa's English model tags as common nouns in the caption as scoring tokenises it, each counted
once. Plurals count as their singular ("two men" agrees with "a man", "people" with "a person"). Synonyms are
not merged: another name for the same thing agrees if one of the people used it, and so does a wider one
("person" for "man"). Nouns that name no thing ("group", "front") count like others. The tagger's mistakes are
the same for both rows of a comparison.

Precision: the share of a caption's nouns that any human caption of the image has; 0 if it has no noun.
Recall: of the nouns that at least AGREED human captions have, the share that the caption has; images
without such a noun are left out, for every row alike.

    python -m experiments.nouns dataset.json results/g-seed0.json results/twin-seed0.json

prints both for results of `python -m experiments ablate` or `ddcap evaluate --output`, and the differences
to the first.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ddcap.errors import DDCapError, MissingExtraError
from ddcap.evaluation.metrics import bootstrap_interval
from ddcap.evaluation.tokenization import tokenize
from experiments.notebook import Notebook
from experiments.split import Split
from experiments.stored import Stored, load_stored

AGREED = 2
"""So many human captions have to have a noun for recall to ask for it."""

KINDS = ("precision", "recall")

_RULES = 1  # raised when nouns are found in another way, so that kept results are made again
# plurals without an s, by the end of the word; the model takes "skateboarder" for one, too
_PLURAL_ENDS = {"people": "person", "men": "man", "children": "child", "feet": "foot", "teeth": "tooth"}


def agreement(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> dict[str, list[float | None]]:
    """Precision and recall of every caption's nouns, from 0 to 1, in the order of `captions`.

    Args:
        captions: image id to caption.
        references: image id to human captions.

    Raises:
        MissingExtraError: if HanTa is not installed.
    """
    found: dict[str, list[float | None]] = {kind: [] for kind in KINDS}
    for image, caption in captions.items():
        own = nouns_of(caption)
        said_by = Counter(noun for text in references[image] for noun in nouns_of(text))
        asked = {noun for noun, people in said_by.items() if people >= AGREED}
        found["precision"].append(len(own & said_by.keys()) / len(own) if own else 0.0)
        found["recall"].append(len(own & asked) / len(asked) if asked else None)
    return found


@lru_cache(maxsize=100_000)
def nouns_of(caption: str) -> frozenset[str]:
    """The nouns of a caption, in the singular.

    Raises:
        MissingExtraError: if HanTa is not installed.
    """
    tokenized, _ = tokenize({"": [caption]}, "ptb-python")
    words = tokenized[""][0].split()
    tagged = _tagger().tag_sent(words) if words else []
    return frozenset(_singular(word, lemma, tag) for word, lemma, tag in tagged if tag.startswith("NN"))


def known(values: Sequence[float | None]) -> list[float]:
    """The images that a measure can be told of: the same ones for all captions of a split."""
    return [value for value in values if value is not None]


def nouns_of_row(
    name: str, captions: Mapping[str, str], references: Mapping[str, Sequence[str]], notebook: Notebook
) -> dict[str, Any]:
    """Compute what `agreement` finds, kept in the notebook as `nouns-NAME`.

    Args:
        name: of the row and its seed.
        captions: image id to caption.
        references: image id to human captions.
        notebook: holds what is finished.
    """
    texts = {image: list(references[image]) for image in captions}

    def compute() -> dict[str, Any]:
        return {"image_ids": list(captions), **agreement(captions, references)}

    return notebook.part(f"nouns-{name}", ["nouns", _RULES, AGREED, dict(captions), texts], compute)


def add_nouns(
    rows: Mapping[tuple[str, int], dict[str, Any]], split: Split, notebook: Notebook
) -> dict[tuple[str, int], dict[str, Any]]:
    """Scored rows with `nouns`, the precision and recall of every image."""
    return {
        (name, seed): {
            **content,
            "nouns": nouns_of_row(f"{name}-seed{seed}", content["predictions"], split.references, notebook),
        }
        for (name, seed), content in rows.items()
    }


@cache
def _tagger() -> Any:
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError:
        raise MissingExtraError("finding the nouns of captions", "report") from None
    return HanoverTagger("morphmodel_en.pgz")


def _singular(word: str, lemma: str, tag: str) -> str:
    """The singular of a noun; the model's lemma where it is a regular one."""
    for plural, singular in _PLURAL_ENDS.items():
        if word.endswith(plural):
            return word.removesuffix(plural) + singular
    if tag != "NN2" or lemma == word or not word.endswith("s"):
        return word
    regular = {word[:-1], word[:-2], word[:-3] + "y", word[:-3] + "f", word[:-3] + "fe"}
    return lemma if lemma in regular and not word.endswith("is") else word[:-1]


def to_text(stored: Sequence[Stored]) -> str:
    """A table of rows: precision and recall in per cent, and the paired differences to the first row."""
    lines = [f"| row | {' | '.join(f'{kind}, % [95 %] | to the first [95 %]' for kind in KINDS)} |"]
    lines.append("| --- " * (1 + 2 * len(KINDS)) + "|")
    columns = [agreement(one.captions, one.references) for one in stored]
    for one, column in zip(stored, columns, strict=True):
        cells = [one.name]
        for kind in KINDS:
            own, first = ([100 * value for value in known(each[kind])] for each in (column, columns[0]))
            cells.append(_shown(own, ""))
            differences = [a - b for a, b in zip(own, first, strict=True)]
            cells.append("" if column is columns[0] else _shown(differences, "+"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{len(stored[0].captions)} images; intervals: bootstrap over images"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, see above."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.nouns", description="noun agreement of scored rows"
    )
    parser.add_argument("data", help="the captions' JSON that the results were scored on")
    parser.add_argument("results", nargs="+", help="JSON files of rows of the same images")
    options = parser.parse_args(arguments)
    try:
        print(to_text(load_stored(options.results, options.data, Path(options.data).parent)))
    except DDCapError as error:
        print(f"nouns: {error}", file=sys.stderr)
        return 1
    return 0


def _shown(values: Sequence[float], sign: str) -> str:
    low, high = bootstrap_interval(values)
    return f"{sum(values) / len(values):{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


if __name__ == "__main__":
    sys.exit(main())
