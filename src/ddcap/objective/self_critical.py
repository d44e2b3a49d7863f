"""Self-critical training: captions drawn from the model are made likelier the better they score.

Source: Rennie et al. 2017, "Self-critical sequence training", with the mean of a picture's other draws as the
baseline (Luo 2020); what is drawn, and with which probability, is adapted to best-first decoding in
`policy.py`. The reward is CIDEr-D against the picture's human captions, where the end of a caption counts as
a word, so that captions learn to end.

Shapes: I images, n captions per image, B = I n captions (grouped by image).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddcap.data.batches import CaptionBatch
from ddcap.data.karpathy import CaptionedImage
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.evaluation.document_frequencies import DocumentFrequencies
from ddcap.evaluation.metrics import score_cider
from ddcap.evaluation.tokenization import tokenize
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel
from ddcap.objective.likelihood import Losses
from ddcap.objective.policy import DrawnCaptions, draw_captions
from ddcap.recipe import DecodingSettings, SelfCriticalSettings

_END = "</s>"


class CiderReward:
    """CIDEr-D of token rows against the human captions of their pictures.

    Args:
        records: the training pictures; their captions are the references and give the document frequencies.
        tokenizer: of the model.

    Raises:
        MissingExtraError: if pycocoevalcap is not installed.
    """

    def __init__(self, records: Sequence[CaptionedImage], tokenizer: CaptionTokenizer) -> None:
        # by the rules in Python: rewards are asked for at every step, and have to be the same without Java
        plain, _ = tokenize({record.image_id: record.captions for record in records}, "ptb-python")
        self._references = {
            image: [f"{caption} {_END}" for caption in captions] for image, captions in plain.items()
        }
        self._frequencies = DocumentFrequencies.count(self._references, "the training split")
        self._tokenizer = tokenizer

    def __call__(self, tokens: Tensor, image_ids: Sequence[str]) -> Tensor:
        """Rewards (B,), 1 for a CIDEr of 100, of `tokens` (B, L) grouped by `image_ids` (I)."""
        rows = tokens.tolist()
        per_image = len(rows) // len(image_ids)
        guesses, truth = {}, {}  # a picture can come more than once, so rows are told apart by number
        texts, _ = tokenize(
            {str(number): [self._tokenizer.decode(row)] for number, row in enumerate(rows)}, "ptb-python"
        )
        for number, row in enumerate(rows):
            end = [_END] if self._tokenizer.end_id in row else []
            guesses[str(number)] = [" ".join([*texts[str(number)], *end])]
            truth[str(number)] = self._references[image_ids[number // per_image]]
        score = score_cider(truth, guesses, self._frequencies)
        return torch.tensor(score.per_image, device=tokens.device)


def advantages(rewards: Tensor, captions_per_image: int) -> Tensor:
    """(B,) how much better each caption is than the mean of its picture's other ones.

    Args:
        rewards: (B,), grouped by image.
        captions_per_image: n, at least 2.
    """
    grouped = rewards.view(-1, captions_per_image)
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (captions_per_image - 1)
    return (grouped - others).flatten()


def self_critical_loss(
    model: CaptioningModel,
    batch: CaptionBatch,
    features: ImageFeatures,
    reward: CiderReward,
    settings: SelfCriticalSettings,
    decoding: DecodingSettings,
    *,
    end_id: int,
    generator: torch.Generator,
) -> Losses:
    """Draw captions, score them, and weigh the logarithm of their words' probability by the advantage.

    Dropout is off: the probability has to be that of the model that drew.

    Args:
        model: of either kind.
        batch: its pictures are read, not its captions.
        features: of the batch's images.
        reward: scores token rows.
        settings: how many captions are drawn, in how many steps.
        decoding: the recipe's, for the lengths.
        end_id: the end token.
        generator: draws the words; on the batch's device.

    Returns:
        `drawn` is the loss, see `policy_loss`; `reward` the mean reward.
    """
    was_training = model.training
    model.eval()
    drawn = draw_captions(
        model,
        features,
        decoding,
        captions_per_image=settings.captions,
        steps=settings.steps,
        learned_steps=settings.learned_steps,
        end_id=end_id,
        generator=generator,
    )
    model.train(was_training)
    rewards = reward(drawn.tokens, batch.image_ids)
    loss = policy_loss(drawn, advantages(rewards, settings.captions), model.config.model.max_length)
    none = torch.zeros((), device=loss.device)
    return Losses(none, none, loss, rewards.mean())


def policy_loss(drawn: DrawnCaptions, advantage: Tensor, longest: int) -> Tensor:
    """Mean over captions of -advantage x log-probability of the caption, / `longest`.

    Its gradient is that of the expected reward, and it is the same however the captions are divided into
    batches: a mean over words would count a caption less the longer those beside it are.

    Args:
        drawn: B captions.
        advantage: (B,).
        longest: tokens of the longest caption, so that the loss is of the size of a word's.
    """
    words = -(advantage[drawn.caption_of] * drawn.log_probabilities).sum()
    return words / (drawn.share * len(drawn.tokens) * longest)
