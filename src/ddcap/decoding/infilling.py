"""Captions with blanks: keep the given words, fill the rest.

A template is text with blanks: `___` (unknown width) or `[3]` (that many tokens).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from ddcap.arrays import Array, array_namespace, to_host
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.allowed_tokens import ConstrainedCaption, Vocabulary
from ddcap.decoding.constraints import Constraints
from ddcap.decoding.finishing import Candidates, Judge, judged
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.decoding.scoring import pseudo_log_likelihoods
from ddcap.errors import DDCapError
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel, DenoisingModel
from ddcap.settings import DecodingSettings

WIDEST_BLANK = 4  # tokens tried for a blank of unknown width
MOST_CANDIDATES = 64  # width combinations decoded at once
MOST_COMPARED = 16  # of which are compared by pseudo-likelihood
_BLANK = re.compile(r"_{2,}|\[(\d+)\]")


@dataclass(frozen=True)
class Template:
    """A caption with blanks: given token ids, and a width for each blank (None = unknown), in order.

    Attributes:
        parts: a tuple of token ids where words are given, an int or None where a blank is.
    """

    parts: tuple[tuple[int, ...] | int | None, ...]

    @property
    def blanks(self) -> list[int | None]:
        """Widths of the blanks, in order."""
        return [part for part in self.parts if not isinstance(part, tuple)]

    @property
    def shortest(self) -> int:
        """Tokens of the caption with every blank as narrow as it may be."""
        return sum(len(part) if isinstance(part, tuple) else part or 1 for part in self.parts)

    def fill_widths(self, widths: Sequence[int], mask_id: int) -> list[int]:
        """Token ids with MASK in every blank, the blanks of the given widths."""
        remaining = iter(widths)
        tokens: list[int] = []
        for part in self.parts:
            tokens.extend(part if isinstance(part, tuple) else [mask_id] * next(remaining))
        return tokens


def parse_template(text: str, tokenizer: CaptionTokenizer) -> Template:
    """Read `a ___ dog [2] the beach`; the end token is added as a given one.

    Raises:
        DDCapError: if there is no blank, one of width 0, or a word that the tokenizer cannot spell.
    """
    tokenizer.check_spelling(f"template {text!r}", _BLANK.sub(" ", text))
    parts: list[tuple[int, ...] | int | None] = []
    position = 0
    for match in _BLANK.finditer(text):
        parts.append(tuple(tokenizer.encode_part(text[position : match.start()])))
        width = int(match.group(1)) if match.group(1) else None
        if width == 0:
            raise DDCapError(f"template {text!r}: has a blank of width 0; remove it, or write ___")
        parts.append(width)
        position = match.end()
    if not parts:
        raise DDCapError(
            f"template {text!r}: has no blank; write ___ (one to four tokens) or [3] (three) where words "
            "are missing"
        )
    parts.append((*tokenizer.encode_part(text[position:]), tokenizer.end_id))
    return Template(tuple(part for part in parts if part != ()))


def infill(
    model: CaptioningModel,
    features: ImageFeatures,
    template: Template,
    settings: DecodingSettings,
    end_id: int,
    generator: np.random.Generator | None = None,
    words: tuple[Constraints, Vocabulary] | None = None,
    tokenizer: CaptionTokenizer | None = None,
    judge: Judge | None = None,
) -> Candidates:
    """Fill a template for one image.

    Blanks of unknown width are tried at 1 to WIDEST_BLANK tokens, all combinations in one batch; wider where
    none of these can be as it is asked to be; where the settings ask for an exact length, at all widths that
    give it. The best has the highest mean
    log-probability of its filled tokens plus log-probability of its length (where the model predicts one).
    With a tokenizer, a diffusion model looks again at the `MOST_COMPARED` best: of these, the one with the
    highest pseudo-likelihood wins, which finds a person's width more often (docs/confidence.md).

    Args:
        model: in evaluation mode.
        features: of one image.
        template: see `parse_template`.
        settings: decoding; its `length` is followed where `exact_length` says so, else the template gives it.
        end_id: of the tokenizer; it never fills a blank, and pads shorter candidates.
        generator: source of randomness.
        words: what the caption has to be like, and the vocabulary of the tokenizer.
        tokenizer: of the model.
        judge: a second opinion on the widths, see `finishing.judged`.

    Returns:
        All widths that were tried, with their scores.

    Raises:
        DDCapError: if the caption would be too long, or cannot have the length asked for or be as asked.
    """
    longest = model.config.model.max_length
    if template.shortest > longest:
        raise DDCapError(
            f"the template makes a caption of at least {template.shortest} tokens, but this model's longest "
            f"has {longest}; shorten it"
        )
    if settings.exact_length:
        assert isinstance(settings.length, int)  # the settings see to it
        combinations = _widths_of_length(template, settings.length)
    else:
        combinations = _width_combinations(template.blanks)
    rows = [template.fill_widths(widths, model.mask_id) for widths in combinations]
    rows = [row for row in rows if len(row) <= longest]
    constrained = None
    if words is not None:
        constrained = _possible(rows, words, model.mask_id)
        if not constrained and not settings.exact_length:
            constrained = _wider(template, words, model.mask_id, longest)
        if not constrained:
            raise DDCapError("the constraints do not fit this template; loosen them, or change the template")
        rows = [caption.tokens for caption in constrained]
    sizes = np.array([len(row) for row in rows])
    padded = [row + [end_id] * (int(sizes.max()) - len(row)) for row in rows]
    tokens, lengths = model.as_array(np.array(padded)), model.as_array(sizes)
    sampler = Sampler(model, features, settings, end_id, generator=generator)
    result = sampler.fill(Drafts(tokens, lengths, len(rows), may_end=False, allowed=constrained))
    score = _fill_score(tokens == model.mask_id, result.confidences)
    length_logits = model.length_logits(features)
    if length_logits is not None:
        score = score + length_logits[0, lengths - 1]  # what normalises them is the same for all widths
    score = judged(score, result, features, judge, 1.0)
    if tokenizer is None or len(rows) == 1 or model.config.model.kind != "diffusion":
        return Candidates(result, len(rows), score)
    best = np.argsort(-to_host(score), kind="stable")[:MOST_COMPARED]
    compared = result.select(model.as_array(best))
    captions = [
        row[: sizes[number]].tolist() for row, number in zip(to_host(compared.tokens), best, strict=True)
    ]
    evidence = pseudo_log_likelihoods(cast(DenoisingModel, model), features, captions, tokenizer)
    if length_logits is not None:
        evidence = evidence + to_host(length_logits)[0, sizes[best] - 1]
    scores = np.full(len(rows), -np.inf, dtype=evidence.dtype)
    scores[best] = to_host(judged(model.as_array(evidence), compared, features, judge, 0.0))
    return Candidates(result, len(rows), model.as_array(scores))


def _possible(
    rows: Sequence[Sequence[int]], words: tuple[Constraints, Vocabulary], mask_id: int
) -> list[ConstrainedCaption]:
    """Those of the rows with blanks that can be filled so that they are as asked."""
    every = [ConstrainedCaption(*words, row, behind_given(row, mask_id)) for row in rows]
    for caption in every:
        caption.check_given()
    return [caption for caption in every if caption.is_possible]


def _wider(
    template: Template, words: tuple[Constraints, Vocabulary], mask_id: int, longest: int
) -> list[ConstrainedCaption]:
    """The same of the WIDEST_BLANK shortest lengths at which there are any, up to the longest caption."""
    found: list[ConstrainedCaption] = []
    lengths = range(template.shortest, longest + 1) if None in template.blanks else ()
    tried = 0
    for length in lengths:
        combinations = _widths_of_length(template, length)
        rows = [template.fill_widths(widths, mask_id) for widths in combinations]
        possible = _possible(rows, words, mask_id)
        found, tried = [*found, *possible], tried + bool(possible)
        if tried == WIDEST_BLANK:
            break
    return found[:MOST_CANDIDATES]


def behind_given(tokens: Sequence[int], mask_id: int) -> list[int]:
    """Positions of MASKs right behind a given token: there a new word begins."""
    pairs = enumerate(itertools.pairwise(tokens), start=1)
    return [place for place, (before, now) in pairs if now == mask_id != before]


def _width_combinations(blanks: Sequence[int | None]) -> list[tuple[int, ...]]:
    """All width combinations, narrow ones first, at most MOST_CANDIDATES."""
    choices = [[blank] if blank is not None else list(range(1, WIDEST_BLANK + 1)) for blank in blanks]
    combinations = sorted(itertools.islice(itertools.product(*choices), 100_000), key=sum)
    return combinations[:MOST_CANDIDATES]


def _widths_of_length(template: Template, length: int) -> list[tuple[int, ...]]:
    """Width combinations that make a caption of `length` tokens, even ones first, at most MOST_CANDIDATES.

    Raises:
        DDCapError: if there is none.
    """
    spare, count = length - template.shortest, template.blanks.count(None)
    if spare < 0 or (spare > 0 and count == 0):
        at_least = "at least " if count else ""
        raise DDCapError(
            f"length={length}: the template makes a caption of {at_least}{template.shortest} tokens, end "
            "token included; choose another length, or change the template"
        )
    if count == 0:
        return [tuple(blank or 1 for blank in template.blanks)]
    # the spare tokens in a row, with a wall between each blank's share and the next one's
    places = range(spare + count - 1)
    walls = itertools.islice(itertools.combinations(places, count - 1), 100_000)
    shares = [
        [after - before for before, after in itertools.pairwise((-1, *chosen, len(places)))]
        for chosen in walls
    ]
    combinations = []
    for widths in sorted(shares, key=max)[:MOST_CANDIDATES]:
        remaining = iter(widths)
        combinations.append(tuple(next(remaining) if blank is None else blank for blank in template.blanks))
    return combinations


def _fill_score(is_blank: Array, confidences: Array) -> Array:
    """(B,) mean log-probability of the filled tokens."""
    xp = array_namespace(confidences)
    log_confidences = xp.where(is_blank, xp.log(xp.clip(confidences, min=1e-30)), 0.0)
    return xp.sum(log_confidences, axis=1) / xp.sum(xp.astype(is_blank, xp.float32), axis=1)
