"""Row g's candidates of several lengths, decoded once: what fewer of them would give, and what judges say.

Shapes: I images, K candidates of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ddcap.captioner import Captioner
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.settings import DecodingSettings, dump_settings
from experiments.notebook import Notebook
from experiments.split import IMAGES_AT_ONCE, Split

CANDIDATES = 5


@dataclass(frozen=True)
class Candidates:
    """An image's candidates side by side, that of the likeliest length first.

    Attributes:
        ids: I times K captions as token ids, each of its whole length.
        sampler: (I, K) log-probability with which their tokens were committed. One token a step, it is the
            sampler's likelihood of them.
        length: (I, K) log-probability of their lengths.
    """

    ids: list[list[list[int]]]
    sampler: np.ndarray
    length: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """(I, K) how many tokens each has."""
        return np.array([[len(one) for one in own] for own in self.ids])

    def texts(self, tokenizer: CaptionTokenizer) -> list[list[str]]:
        """The captions of each image."""
        return [[tokenizer.decode(one) for one in own] for own in self.ids]

    def likeliest(self, count: int) -> np.ndarray:
        """(I,) the candidate that decoding with `count` of them keeps, at the plain length penalty of 1."""
        best: np.ndarray = (self.sampler / self.tokens)[:, :count].argmax(axis=1)
        return best


def candidates_of(
    captioner: Captioner,
    split: Split,
    settings: DecodingSettings,
    notebook: Notebook,
    say: Callable[[str], None],
) -> Candidates:
    """The candidates of every image.

    Args:
        captioner: of row g.
        split: of the images.
        settings: how one candidate is decoded.
        notebook: holds what is finished.
        say: is told what begins.
    """

    def compute() -> dict[str, Any]:
        say(f"{CANDIDATES} candidates, guidance {settings.guidance:g}")
        return _decode(captioner, split, settings)

    made_from = [dump_settings(settings), CANDIDATES, split.name, len(split.records)]
    kept = notebook.part(f"candidates-{settings.guidance:g}", made_from, compute)
    return Candidates(kept["ids"], np.array(kept["sampler"]), np.array(kept["length"]))


@torch.no_grad()
def _decode(captioner: Captioner, split: Split, settings: DecodingSettings) -> dict[str, Any]:
    model, end_id = captioner.model, captioner.tokenizer.end_id
    found: dict[str, Any] = {"ids": [], "sampler": [], "length": []}
    count = min(CANDIDATES, model.config.model.max_length)
    for start in range(0, len(split.records), IMAGES_AT_ONCE):
        rows = range(start, min(start + IMAGES_AT_ONCE, len(split.records)))
        features = split.features(captioner, rows)
        result = generate(model, features, settings, end_id, captions_per_image=count)
        lengths = result.lengths.view(-1, count)
        of_length = model.length_logits(features).log_softmax(dim=1).gather(1, lengths - 1)
        order = of_length.argsort(dim=1, descending=True, stable=True)  # they come the likeliest first
        tokens = result.tokens.view(*lengths.shape, -1)
        found["sampler"] += result.evidence(0.0).view_as(lengths).gather(1, order).tolist()
        found["length"] += of_length.gather(1, order).tolist()
        found["ids"] += [
            [tokens[row, place, : int(lengths[row, place])].tolist() for place in own]
            for row, own in enumerate(order.tolist())
        ]
    return found
