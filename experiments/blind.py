"""A blind read of two rows' captions (docs/research/blind_read.md): a sheet to fill, its key, and the score.

python -m experiments.blind sheet dataset.json images/ results/g-seed0.json results/twin-seed0.json
python -m experiments.blind score blind/sheet.md blind/key.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddcap.errors import DataError, DDCapError, remedy
from ddcap.files import read_json, write_text
from experiments.stored import Stored, load_stored

PAIRS = 50
QUESTIONS = ("fidelity", "fluency")
ANSWERS = ("A", "B", "same")
_FORMAT = "ddcap-blind-read-1"
_ANSWER = re.compile(rf"^({'|'.join(QUESTIONS)}):(.*)$", flags=re.MULTILINE)


def make_sheet(
    rows: Sequence[Stored], *, pairs: int = PAIRS, seed: int = 0, images_from: Path | None = None
) -> tuple[str, dict[str, Any]]:
    """The sheet as Markdown, which names no row, and the key to it.

    Args:
        rows: two, of the same images.
        pairs: how many images, drawn from those with two different captions.
        seed: of the draw of images, and of which row is A.
        images_from: folder that the images' paths are told from; None for whole paths.

    Raises:
        DataError: if fewer images have different captions.
    """
    first, second = rows
    differ = [one for one in first.records if first.captions[one.image_id] != second.captions[one.image_id]]
    if not 1 <= pairs <= len(differ):
        raise DataError(
            f"{first.name} and {second.name}: {pairs} pairs are wanted, {len(differ)} images have "
            "different captions; choose another number with --pairs"
        )
    generator = random.Random(seed)
    parts, key = [_HEAD], []
    for number, record in enumerate(generator.sample(differ, pairs), start=1):
        order = [first, second] if generator.random() < 0.5 else [second, first]
        image = record.path if images_from is None else os.path.relpath(record.path, images_from)
        said = "\n".join(f"- {caption}" for caption in record.captions)
        a, b = (row.captions[record.image_id] for row in order)
        questions = "\n".join(f"{question}:" for question in QUESTIONS)
        parts.append(
            f"## {number}\n\n![]({image})\n\nA: {a}\n\nB: {b}\n\nPeople wrote:\n\n{said}\n\n{questions}"
        )
        key.append({"image_id": record.image_id, "A": order[0].name, "B": order[1].name})
    sheet = "\n\n".join(parts) + "\n"
    content = {"format": _FORMAT, "rows": [first.name, second.name], "seed": seed, "pairs": key}
    return sheet, {**content, "sheet": _digest(sheet)}


@dataclass(frozen=True)
class Verdict:
    """The outcome of one question, or of both together.

    Attributes:
        first: pairs in which the first row was better.
        second: pairs in which the second was.
        same: pairs without a difference.
    """

    first: int
    second: int
    same: int

    @property
    def p(self) -> float:
        """Two-sided sign test of the pairs that differ; 1 if none does."""
        decided = self.first + self.second
        return min(1.0, 2 * _at_most(min(self.first, self.second), decided, 0.5))

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95 % interval (Clopper and Pearson 1934) of the first row's share of those that differ."""
        decided = self.first + self.second
        low = _crossing(lambda share: 1 - _at_most(self.first - 1, decided, share) > 0.025)
        high = _crossing(lambda share: _at_most(self.first, decided, share) < 0.025)
        return (low if self.first else 0.0), (high if self.second else 1.0)


def score_sheet(sheet: str, key: dict[str, Any]) -> dict[str, Verdict]:
    """Each question's verdict, and "both": fidelity decides, fluency where fidelity is the same.

    Args:
        sheet: filled, an answer behind every question.
        key: to this sheet.

    Raises:
        DataError: if an answer is missing or unknown, or the sheet is not that of the key.
    """
    if _digest(sheet) != key["sheet"]:
        raise DataError("the sheet is not the one that the key was made with; change nothing but the answers")
    answers: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    for question, text in _ANSWER.findall(sheet):
        number = len(answers[question]) + 1
        given = [answer for answer in ANSWERS if answer.lower() == text.strip().lower()]
        if not given:
            problem = f"{text.strip()!r} is no answer" if text.strip() else "there is no answer"
            raise DataError(f"pair {number}, {question}: {problem}; write {', '.join(ANSWERS)}")
        answers[question] += given
    better = {
        question: [pair.get(answer) for pair, answer in zip(key["pairs"], given, strict=True)]
        for question, given in answers.items()
    }
    fidelity, fluency = (better[question] for question in QUESTIONS)
    better["both"] = [one if one is not None else other for one, other in zip(fidelity, fluency, strict=True)]
    first, second = key["rows"]
    return {
        question: Verdict(named.count(first), named.count(second), named.count(None))
        for question, named in better.items()
    }


def to_text(verdicts: dict[str, Verdict], key: dict[str, Any]) -> str:
    """A table of the verdicts."""
    first, second = key["rows"]
    lines = [
        f"| | {first} better | {second} better | same | {first}'s share of those that differ [95 %] | p |"
    ]
    lines.append("| --- " * 6 + "|")
    for question, one in verdicts.items():
        decided = one.first + one.second
        low, high = one.interval
        share = f"{one.first / decided:.0%} [{low:.0%}, {high:.0%}]" if decided else ""
        lines.append(f"| {question} | {one.first} | {one.second} | {one.same} | {share} | {one.p:.3f} |")
    return "\n".join([*lines, "", f"{len(key['pairs'])} pairs, seed {key['seed']}; exact sign test."])


_HEAD = """# A blind read

For every pair write A, B or same behind both questions; change nothing else. Look at the image, not at the
captions that people wrote alone. Fidelity: which caption says less that is wrong; if neither does, which says
more that is right. Fluency: which caption is the better English, whatever the image shows."""


def _digest(sheet: str) -> str:
    """The same for a sheet whatever its answers."""
    return hashlib.sha256(_ANSWER.sub(r"\1:", sheet).encode()).hexdigest()[:16]


def _at_most(count: int, of: int, share: float) -> float:
    """Probability of at most `count` successes in `of` trials."""
    return sum(math.comb(of, one) * share**one * (1 - share) ** (of - one) for one in range(count + 1))


def _crossing(is_beyond: Callable[[float], bool]) -> float:
    """The share from which on `is_beyond` holds, by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if is_beyond(middle) else (middle, high)
    return high


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, see above."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.blind", description="a blind read of captions"
    )
    commands = parser.add_subparsers(required=True)
    sheet = commands.add_parser("sheet", help="write a sheet and its key")
    sheet.add_argument("data", help="the captions' JSON that the results were scored on")
    sheet.add_argument("images", help="folder of its images")
    sheet.add_argument("results", nargs=2, help="JSON files of two rows")
    sheet.add_argument("--output", default="blind", help="folder for sheet.md and key.json (default: blind)")
    sheet.add_argument("--pairs", type=int, default=PAIRS, help=f"images (default: {PAIRS})")
    sheet.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    sheet.set_defaults(run=_write)
    score = commands.add_parser("score", help="score a filled sheet")
    score.add_argument("sheet")
    score.add_argument("key")
    score.set_defaults(run=_score)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except DDCapError as error:
        print(f"blind: {error}", file=sys.stderr)
        return 1
    return 0


def _write(options: argparse.Namespace) -> None:
    folder = Path(options.output)
    rows = load_stored(options.results, options.data, options.images)
    if rows[0].name == rows[1].name:
        raise DataError(f"{options.results[0]} and {options.results[1]}: have one name; rename a file")
    sheet, key = make_sheet(rows, pairs=options.pairs, seed=options.seed, images_from=folder)
    if (folder / "sheet.md").exists():
        raise DataError(f"{folder}/sheet.md: is there, and may be filled; choose another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "sheet.md", sheet)
        write_text(folder / "key.json", json.dumps(key, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); {remedy(error)}") from None
    print(folder / "sheet.md")


def _score(options: argparse.Namespace) -> None:
    key = read_json(options.key, "give the key.json that the sheet came with")
    if not isinstance(key, dict) or key.get("format") != _FORMAT:
        raise DataError(f"{options.key}: is no key; give the key.json that the sheet came with")
    try:
        sheet = Path(options.sheet).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{options.sheet}: cannot be read ({error}); give the filled sheet.md") from None
    print(to_text(score_sheet(sheet, key), key))


if __name__ == "__main__":
    sys.exit(main())
