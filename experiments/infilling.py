"""Caption infilling, the paper's second task: masked words of a human caption are filled, given the image.

The whole caption's CIDEr is what the paper reports; the kept words inflate it, so the blanks are scored
alone, too, and the kept words without any filling.

Shapes: B captions, L caption positions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ddcap.captioner import Captioner
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.evaluation.metrics import bootstrap_interval, score_captions
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings
from experiments.split import Split


@dataclass(frozen=True)
class BlankedCaption:
    """A human caption with some words masked.

    Attributes:
        tokens: ids of the whole caption, end token included.
        blanks: positions of each masked word's tokens; the words are in order.
    """

    tokens: tuple[int, ...]
    blanks: tuple[tuple[int, ...], ...]

    def masked(self, mask_id: int) -> list[int]:
        """The tokens with MASK in every blank."""
        hidden = {position for blank in self.blanks for position in blank}
        return [mask_id if position in hidden else token for position, token in enumerate(self.tokens)]


@dataclass(frozen=True)
class InfillingScores:
    """Scores of filled blanks, times 100.

    Attributes:
        image_ids: of the captions, one per image.
        whole: CIDEr of each whole filled caption against all of its image's captions, the blanked one among
            them, as in the paper.
        blanks: CIDEr of the filled words alone against the masked words.
        exact: share of each caption's blanks that hold the very word that was masked.
        kept: CIDEr of the kept words alone, nothing filled: what `whole` owes to them.
    """

    image_ids: list[str]
    whole: list[float]
    blanks: list[float]
    exact: list[float]
    kept: list[float]

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Mean, 95 % bootstrap interval over images, and every image's score."""
        return {
            name: {
                "mean": sum(values) / len(values),
                "interval_95": bootstrap_interval(values),
                "per_image": [round(value, 3) for value in values],
            }
            for name, values in vars(self).items()
            if name != "image_ids"
        }


def blank_words(
    caption: str, tokenizer: CaptionTokenizer, share: float, seed: object
) -> BlankedCaption | None:
    """Mask a share of a caption's words, at least one; which ones follows from `seed`.

    None if the caption has no word.
    """
    tokens = tokenizer.encode(caption)
    words: list[list[int]] = []
    for position, piece in enumerate(tokenizer.pieces(tokens[:-1])):
        if piece.startswith(" ") or not words:
            words.append([])
        words[-1].append(position)
    if not words:
        return None
    count = min(len(words), max(1, round(share * len(words))))
    chosen = sorted(random.Random(f"{seed}/{share}/{caption}").sample(range(len(words)), count))
    return BlankedCaption(tuple(tokens), tuple(tuple(words[number]) for number in chosen))


def evaluate_infilling(
    captioner: Captioner, split: Split, settings: DecodingSettings, share: float, seed: int = 0
) -> InfillingScores:
    """Blank one human caption of every image, fill it, score it.

    The caption is the first that is short enough for the model; images without one are left out. Blanks are
    of known width.

    Args:
        captioner: of either kind.
        split: of the images.
        settings: how to decode.
        share: of each caption's words to mask.
        seed: of the choice of words.

    Raises:
        MissingExtraError: if pycocoevalcap is not installed.
    """
    tokenizer = captioner.tokenizer
    filled, kept, blanks, truth, exact = {}, {}, {}, {}, {}
    for records, features in split.batches(captioner):
        chosen = [_choose(record.captions, captioner, share, seed) for record in records]
        rows = _fill(captioner, features, [one or _EMPTY for one in chosen], settings)
        for record, blanked, tokens in zip(records, chosen, rows, strict=True):
            if blanked is None:
                continue
            hidden = [position for blank in blanked.blanks for position in blank]
            image = record.image_id
            filled[image] = tokenizer.decode(tokens)
            kept[image] = tokenizer.decode(blanked.masked(tokenizer.mask_id))
            blanks[image] = tokenizer.decode([tokens[position] for position in hidden])
            truth[image] = [tokenizer.decode([blanked.tokens[position] for position in hidden])]
            right = [
                all(tokens[position] == blanked.tokens[position] for position in blank)
                for blank in blanked.blanks
            ]
            exact[image] = 100 * sum(right) / len(right)
    references = split.references
    return InfillingScores(
        image_ids=list(filled),
        whole=score_captions(filled, references).per_image["CIDEr"],
        blanks=score_captions(blanks, truth).per_image["CIDEr"],
        exact=list(exact.values()),
        kept=score_captions(kept, references).per_image["CIDEr"],
    )


_EMPTY = BlankedCaption((0,), ())


def _choose(captions: Sequence[str], captioner: Captioner, share: float, seed: int) -> BlankedCaption | None:
    longest = captioner.model.config.model.max_length
    for caption in captions:
        blanked = blank_words(caption, captioner.tokenizer, share, seed)
        if blanked is not None and len(blanked.tokens) <= longest:
            return blanked
    return None


@torch.no_grad()
def _fill(
    captioner: Captioner,
    features: ImageFeatures,
    captions: Sequence[BlankedCaption],
    settings: DecodingSettings,
) -> list[list[int]]:
    """Token ids of every caption with its blanks filled."""
    model, end_id = captioner.model, captioner.tokenizer.end_id
    lengths = torch.tensor([len(caption.tokens) for caption in captions], device=model.device)
    longest = int(lengths.max())
    rows = [caption.masked(model.mask_id) for caption in captions]
    tokens = torch.tensor([row + [end_id] * (longest - len(row)) for row in rows], device=model.device)
    sampler = Sampler(model, features, settings, end_id, generator=np.random.default_rng(0))
    result = sampler.fill(Drafts(tokens, lengths, may_end=False))
    filled: list[list[int]] = result.tokens.tolist()
    return filled
