"""Validation during a training: loss, sampled captions, CIDEr where it can be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from ddcap.data.batches import CaptionBatch, CaptionData, Draw
from ddcap.data.records import CaptionedImage
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.generate import generate
from ddcap.errors import DataError, MissingExtraError
from ddcap.evaluation.metrics import score_captions
from ddcap.machine import ALONE, Processes
from ddcap.model.ddcap import DDCapModel
from ddcap.model.loading import TorchModel
from ddcap.settings import DecodingSettings
from ddcap.training.loss import batch_features, caption_loss, draw_noise

FEWEST_TO_CHOOSE_BY = 10
"""Scores of fewer validation images say nothing about which model is best; CIDEr of one is always 0."""

_IMAGES_AT_ONCE = 50


@dataclass(frozen=True)
class Validation:
    """Result of one validation.

    Attributes:
        loss: mean -log p(x_0 | x_t, y) per token, at fixed noise.
        length_loss: cross-entropy of the length head.
        cider: of the validation images, times 100; None where pycocoevalcap is not installed, or in
            training on text alone.
        samples: (image id, caption) of the first images.
        pictures: number of validation images (the key of the log).
        unreadable: why others were not, a line each.
    """

    loss: float
    length_loss: float
    cider: float | None
    samples: list[tuple[str, str]]
    pictures: int
    unreadable: Sequence[str] = ()

    @property
    def score(self) -> float | None:
        """The score that chooses the best checkpoint, higher is better: CIDEr, else the negative loss.

        None if the images are too few to choose by: then the newest is kept.
        """
        if self.pictures < FEWEST_TO_CHOOSE_BY:
            return None
        return self.cider if self.cider is not None else -self.loss


@torch.no_grad()  # not inference_mode, see decoding.generate
def validate(
    model: TorchModel,
    data: CaptionData,
    tokenizer: CaptionTokenizer,
    decoding: DecodingSettings,
    *,
    images: int,
    samples: int,
    device: torch.device,
    processes: Processes = ALONE,
    between: Callable[[], None] = lambda: None,
    judge_only: bool = False,
) -> Validation:
    """Validate `model` (in evaluation mode) on the first images of `data`, always with the same noise.

    Several processes share the images; each has to call this, and each gets the result of all.

    Args:
        model: of either kind.
        data: of the validation split.
        tokenizer: of the model.
        decoding: how captions are made.
        images: images to validate on, at most.
        samples: captions that are kept.
        device: where the model is.
        processes: this one and the others.
        between: is called before every batch of images, by all processes as often.
        judge_only: the loss is that of the model's own judge.

    Raises:
        DataError: if none of the images can be read.
    """
    totals = torch.zeros(4, dtype=torch.float64)  # loss x tokens, tokens, length loss x captions, captions
    captions: dict[str, str] = {}
    unreadable: list[str] = []
    usable = [record for record, texts in enumerate(data.captions) if texts][:images]
    batches = [usable[start : start + _IMAGES_AT_ONCE] for start in range(0, len(usable), _IMAGES_AT_ONCE)]
    for first in range(0, len(batches), processes.count):
        between()
        number = first + processes.index
        if number >= len(batches):
            continue
        batch = _validation_batch(data, batches[number]).to(device)
        unreadable += batch.unreadable
        if batch.is_blank:
            continue
        features = batch_features(model, batch)
        noise = None
        if isinstance(model, DDCapModel):
            drawn = draw_noise(
                torch.Generator().manual_seed(number),  # the same whoever computes it
                model.schedule,
                images=len(batches[number]),
                captions_per_image=1,
                length=model.config.model.max_length,
                self_conditioning=model.config.model.self_conditioning,
            )
            noise = drawn.of(batch.places, device)
        losses = caption_loss(model, batch, features, noise, judge_only=judge_only)
        tokens, count = len(batch.positions), len(batch.lengths)
        totals += torch.tensor(
            [losses.token * tokens, tokens, losses.length * count, count], dtype=torch.float64
        )
        if features is None:
            continue  # there is no image to caption
        generator = np.random.default_rng(number)
        result = generate(model, features, decoding, tokenizer.end_id, generator=generator)
        texts = [tokenizer.decode(ids) for ids in result.tokens.tolist()]
        captions.update(zip(batch.image_ids, texts, strict=True))
    everyones = processes.gather((totals, captions, unreadable))
    totals = torch.stack([theirs for theirs, _, _ in everyones]).sum(dim=0)
    found = {image: text for _, theirs, _ in everyones for image, text in theirs.items()}
    unreadable = [reason for _, _, theirs in everyones for reason in theirs]
    if not totals[3]:
        raise DataError(f"{unreadable[0]}; no other validation image can be read either; check data.root")
    ids = [data.records[record].image_id for record in usable]
    captions = {image: found[image] for image in ids if image in found}
    return Validation(
        loss=float(totals[0] / totals[1]),
        length_loss=float(totals[2] / totals[3]),
        cider=_cider(captions, data.records),
        samples=list(islice(captions.items(), samples)),
        pictures=int(totals[3]),
        unreadable=unreadable,
    )


def _validation_batch(data: CaptionData, records: Sequence[int]) -> CaptionBatch:
    """The first caption of every image, plain view."""
    return data[tuple(Draw(record, (0,), view=0, epoch=0) for record in records)]


def _cider(captions: dict[str, str], records: Sequence[CaptionedImage]) -> float | None:
    if not captions:
        return None
    references = {record.image_id: record.captions for record in records}
    try:
        # the same words as Java's, whose start would cost as much as the validation of a few images
        return score_captions(captions, references, "ptb-python").metrics["CIDEr"]
    except MissingExtraError:
        return None
