"""What a training asks now and then: validation loss, sampled captions, CIDEr where it can be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ddcap.data.batches import CaptionBatch, Draw
from ddcap.data.caption_data import CaptionData
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.errors import MissingExtraError
from ddcap.evaluation.metrics import score_captions
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel
from ddcap.recipe import DecodingSettings
from ddcap.training.objective import caption_loss

_IMAGES_AT_ONCE = 50


@dataclass(frozen=True)
class Validation:
    """Result of one validation.

    Attributes:
        loss: mean -log p(x_0 | x_t, y) per token, at fixed noise.
        length_loss: cross-entropy of the length head.
        cider: of the validation pictures, times 100; None where pycocoevalcap is not installed, or in
            training on text alone.
        samples: (image id, caption) of the first pictures.
    """

    loss: float
    length_loss: float
    cider: float | None
    samples: list[tuple[str, str]]

    @property
    def score(self) -> float:
        """What the best checkpoint is chosen by, higher is better: CIDEr, else the negative loss."""
        return self.cider if self.cider is not None else -self.loss


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    Attributes:
        count: how many there are.
        index: which one this is.
        gather: an object of this process to those of all, in order.
    """

    count: int
    index: int
    gather: Callable[[Any], list[Any]]


ALONE = Processes(1, 0, lambda mine: [mine])


@torch.inference_mode()
def validate(
    model: CaptioningModel,
    data: CaptionData,
    tokenizer: CaptionTokenizer,
    decoding: DecodingSettings,
    *,
    images: int,
    samples: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Validation:
    """Validate `model` (in evaluation mode) on the first pictures of `data`, always with the same noise.

    Several processes share the pictures; each has to call this, and each gets the result of all.
    """
    totals = torch.zeros(3, dtype=torch.float64)  # loss x tokens, tokens, length loss x captions
    captions: dict[str, str] = {}
    usable = [record for record, texts in enumerate(data.captions) if texts][:images]
    for number, start in enumerate(range(0, len(usable), _IMAGES_AT_ONCE)):
        if number % processes.count != processes.index:
            continue
        generator = torch.Generator(device).manual_seed(number)  # the same whoever computes it
        batch = _validation_batch(data, usable[start : start + _IMAGES_AT_ONCE]).to(device)
        features = batch_features(model, batch)
        losses = caption_loss(model, batch, features, generator=generator)
        tokens, count = len(batch.positions), len(batch.lengths)
        totals += torch.tensor([losses.token * tokens, tokens, losses.length * count], dtype=torch.float64)
        if features is None:
            continue  # there is no picture to caption
        result = generate(model, features, decoding, tokenizer.end_id, generator=generator)
        texts = [tokenizer.decode(ids) for ids in result.tokens.tolist()]
        captions.update(zip(batch.image_ids, texts, strict=True))
    everyones = processes.gather((totals, captions))
    totals = torch.stack([theirs for theirs, _ in everyones]).sum(dim=0)
    found = {image: text for _, theirs in everyones for image, text in theirs.items()}
    ids = [data.records[record].image_id for record in usable]
    captions = {image: found[image] for image in ids if image in found}
    return Validation(
        loss=float(totals[0] / totals[1]),
        length_loss=float(totals[2] / sum(len(data.captions[record][:1]) for record in usable)),
        cider=_cider(captions, data.records),
        samples=list(islice(captions.items(), samples)),
    )


def batch_features(model: CaptioningModel, batch: CaptionBatch) -> ImageFeatures | None:
    """The batch's cached features, or the encoder's output on its pixels (no gradient if it is frozen).

    None for captions without pictures.
    """
    if batch.memory is not None and batch.summary is not None:
        return ImageFeatures(batch.memory, batch.summary)
    if batch.pixels is None:
        return None
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.config.encoder.trainable):
        features: ImageFeatures = model.encoder(batch.pixels)
    return features


def _validation_batch(data: CaptionData, records: Sequence[int]) -> CaptionBatch:
    """The first caption of every picture, plain view."""
    return data[tuple(Draw(record, (0,), view=0, epoch=0) for record in records)]


def _cider(captions: dict[str, str], records: Sequence[CaptionedImage]) -> float | None:
    if not captions:
        return None
    references = {record.image_id: record.captions for record in records}
    try:
        return score_captions(captions, references).metrics["CIDEr"]
    except MissingExtraError:
        return None
