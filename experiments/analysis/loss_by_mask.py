"""Measure the cost of human captions for diffusion and its twin: nats a token by the share still unknown.

A diffusion model's chain of conditional losses depends on the order in which the tokens become known. Three
orders are followed, one token at a time, at the timestep that the sampler would be at:

- random: the mean over the tokens that may come next, which is the any-order bound on its likelihood
  (Hoogeboom et al. 2022, Autoregressive Diffusion Models). Training minimises it, but for weights.
- left to right: the twin's order. The difference to the twin is what one model of all orders loses in one.
- best-first: the position that it finds surest is next, whatever the caption has there: the exact likelihood
  of the sampler at temperature 1, see `ddcap.decoding.scoring.sampler_log_likelihood`.

Without guidance. A diffusion model is told the length, for which its length head is charged beside.

Shapes: B captions of one length, L tokens of each, V words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddcap.captioner import Captioner
from ddcap.decoding.predictor import Predictor
from ddcap.decoding.schedulers.best_first import timestep_for_mask_ratio
from ddcap.model.features import ImageFeatures
from experiments.means import summary
from experiments.split import Split

ORDERS = ("random", "left_to_right", "best_first")
BINS = 10
_ROWS = 200  # captions computed at once


@torch.no_grad()
def losses_in_order(
    model: Any, features: ImageFeatures, tokens: Tensor, order: str, generator: torch.Generator
) -> Tensor:
    """(B, L) nats of the token that becomes known when L, L - 1, ..., 1 tokens of a caption are MASK.

    Args:
        model: a diffusion model in evaluation mode.
        features: of B images.
        tokens: (B, L) captions of one length, end token included.
        order: one of ORDERS.
        generator: of the random order.
    """
    captions, length = tokens.shape
    lengths = torch.full((captions,), length)
    predictor = Predictor(model.denoising_steps(features, with_image_free=False), lengths.to(tokens.device))
    is_mask = torch.ones_like(tokens, dtype=torch.bool)
    row, losses = torch.arange(captions, device=tokens.device), []
    for left in range(length, 0, -1):
        told = timestep_for_mask_ratio(np.full(captions, left), lengths.numpy(), model.config.diffusion.steps)
        noised = torch.where(is_mask, model.mask_id, tokens)
        log_p: Tensor = predictor.log_probabilities(noised, torch.from_numpy(told).to(tokens.device))
        own = log_p.gather(2, tokens.unsqueeze(2)).squeeze(2)  # (B, L)
        if order == "left_to_right":
            chosen = torch.full_like(row, length - left)
        else:
            random = torch.rand((captions, length), generator=generator).to(tokens.device)
            wanted = random if order == "random" else log_p.max(dim=2).values.exp()
            chosen = wanted.masked_fill(~is_mask, -1).argmax(dim=1)
        if order == "random":
            losses.append(-(own * is_mask).sum(dim=1) / left)
        else:
            losses.append(-own[row, chosen])
        is_mask[row, chosen] = False
    return torch.stack(losses, dim=1)


@torch.no_grad()
def twin_losses(model: Any, features: ImageFeatures, tokens: Tensor) -> Tensor:
    """(B, L) nats of each token, given the image and the tokens before it."""
    log_p = model.decoder.logits(model(tokens, features)).float().log_softmax(dim=2)
    return -log_p.gather(2, tokens.unsqueeze(2)).squeeze(2)


@dataclass(frozen=True)
class Chain:
    """The losses of one human caption, from all unknown to all known.

    Attributes:
        row: of its image in the split.
        losses: model and order to L numbers.
        length: nats of its length, by g's length head.
    """

    row: int
    losses: dict[str, list[float]]
    length: float


def chains(captioners: dict[str, Captioner], split: Split, seed: int = 0) -> Iterator[Chain]:
    """Every human caption of the split that the models can hold, by length."""
    model, twin = captioners["g"].model, captioners["twin"].model
    generator = torch.Generator().manual_seed(seed)
    by_length: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for row, record in enumerate(split.records):
        for ids in captioners["g"].tokenizer.encode_batch(record.captions):
            if len(ids) <= model.config.model.max_length:
                by_length[len(ids)].append((row, ids))
    for length, captions in sorted(by_length.items()):
        for start in range(0, len(captions), _ROWS):
            some = captions[start : start + _ROWS]
            rows = [row for row, _ in some]
            tokens = torch.tensor([ids for _, ids in some], device=model.device)
            features = split.features(captioners["g"], rows)
            found = {
                f"g, {order}": losses_in_order(model, features, tokens, order, generator) for order in ORDERS
            }
            found["twin"] = twin_losses(twin, split.features(captioners["twin"], rows), tokens)
            with torch.no_grad():
                of_length = -model.length_logits(features).log_softmax(dim=1)[:, length - 1]
            for place, row in enumerate(rows):
                each = {name: losses[place].tolist() for name, losses in found.items()}
                yield Chain(row, each, float(of_length[place]))


def loss_by_mask(captioners: dict[str, Captioner], split: Split) -> dict[str, Any]:
    """Nats a token by the share of the caption that is still unknown, and nats a caption.

    Args:
        captioners: row "g" and its "twin", with one tokenizer.
        split: of the images; all their human captions count, each image as much as the others.

    Returns:
        "by_share": model and order to BINS points, from little unknown to all; "captions": to nats of a whole
        caption; "length": nats of its length; "minus_twin": paired differences of whole captions, the length
        included.
    """
    found = list(chains(captioners, split))
    names = list(found[0].losses)
    whole = {name: _by_image((one.row, sum(one.losses[name])) for one in found) for name in names}
    of_length = _by_image((one.row, one.length) for one in found)
    with_length = {
        name: values if name == "twin" else [a + b for a, b in zip(values, of_length, strict=True)]
        for name, values in whole.items()
    }
    return {
        "pictures": len({one.row for one in found}),
        "captions": len(found),
        "too_long": sum(len(record.captions) for record in split.records) - len(found),
        "tokens_of_a_caption": sum(len(one.losses["twin"]) for one in found) / len(found),
        "by_share": {name: [_bin(found, name, number) for number in range(BINS)] for name in names},
        "nats_of_a_caption": {name: summary(values) for name, values in whole.items()},
        "nats_of_its_length": summary(of_length),
        "minus_twin": {
            name: summary([a - b for a, b in zip(values, whole["twin"], strict=True)])
            for name, values in with_length.items()
            if name != "twin"
        },
    }


def bin_of(known: int, length: int) -> int:
    """The bin of a caption of which `known` of `length` tokens are known; bin 9 has over 90 % unknown."""
    return -(-BINS * (length - known) // length) - 1


def _bin(found: Sequence[Chain], name: str, number: int) -> dict[str, Any]:
    pairs = [
        (one.row, loss)
        for one in found
        for known, loss in enumerate(one.losses[name])
        if bin_of(known, len(one.losses[name])) == number
    ]
    own = {"unknown": [number / BINS, (number + 1) / BINS], "tokens": len(pairs)}
    return own | (summary(_by_image(pairs)) if pairs else {"mean": None, "interval_95": None})


def _by_image(pairs: Any) -> list[float]:
    """The mean of each image's numbers, for those that have any."""
    values: dict[int, list[float]] = defaultdict(list)
    for row, value in pairs:
        values[row].append(value)
    return [sum(own) / len(own) for _, own in sorted(values.items())]
