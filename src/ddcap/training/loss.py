"""The training loss: the noise of a step, the likelihood of captions and of their lengths.

L_x0 = -log p(x_0 | x_t, y) over all real positions, and the cross-entropy of the length head.
An autoregressive model's is -log p(word | words before it, y) over the same positions.

Shapes: I images of a step or a part, n captions per image, B = I n captions, L caption positions; N rows, D
width, V words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcap.data.batches import CaptionBatch
from ddcap.diffusion import Schedule, noise_tokens
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.blocks import MemoryKeysValues
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import TorchModel
from ddcap.recipe import TrainingSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


# The random numbers of a training step: the same however many processes and parts compute it.


@dataclass(frozen=True)
class Noise:
    """Random numbers of likelihood training for some images.

    Attributes:
        image: (I,) uniform in [0, 1): whether the image is dropped (special design 4).
        timestep: (I, n) t of every caption.
        uniform: (I, n, L), see `noise_tokens`.
        replacement: (I, n, L), see `noise_tokens`.
        use_self_cond: (I, n) True where a caption sees a first prediction (`model.self_conditioning`); None
            for models that see none.
        is_read: (I, n) whether a shared judge reads the caption (`model.judge`); None without one.
    """

    image: Tensor
    timestep: Tensor
    uniform: Tensor
    replacement: Tensor
    use_self_cond: Tensor | None = None
    is_read: Tensor | None = None

    def of(self, images: Sequence[int], device: torch.device) -> Noise:
        """The numbers of some of the images, in that order, on `device`."""
        rows = torch.tensor(images)
        drawn = {name: numbers for name, numbers in vars(self).items() if numbers is not None}
        return Noise(**{name: one[rows].to(device, non_blocking=True) for name, one in drawn.items()})

    def add_to(self, tokens: Tensor, schedule: Schedule) -> Tensor:
        """x_t (B, L') of x_0 `tokens` (B, L'), L' at most L."""
        length = tokens.shape[1]
        drawn = (numbers.flatten(0, 1)[:, :length] for numbers in (self.uniform, self.replacement))
        return noise_tokens(tokens, self.timestep.flatten(), schedule, *drawn)


def draw_noise(
    generator: torch.Generator,
    schedule: Schedule,
    *,
    images: int,
    captions_per_image: int,
    length: int,
    self_conditioning: bool = False,
    judge_share: float = 0.0,
) -> Noise:
    """Draw for whole images.

    Args:
        generator: on the CPU: a step draws a few thousand numbers, and a GPU would draw others.
        schedule: the forward process; t is uniform over its steps.
        images: I, of all processes.
        captions_per_image: n.
        length: L, the longest a caption can be.
        self_conditioning: whether half the captions are told a first prediction; drawn last, so that all else
            is the same with it and without.
        judge_share: share of the captions that a shared judge reads; 0 for models without one. Drawn last of
            all.
    """
    captions = (images, captions_per_image)
    return Noise(
        image=torch.rand(images, generator=generator),
        timestep=torch.randint(schedule.steps, captions, generator=generator),
        uniform=torch.rand((*captions, length), generator=generator),
        replacement=torch.randint(schedule.vocabulary_size, (*captions, length), generator=generator),
        use_self_cond=torch.rand(captions, generator=generator) < 0.5 if self_conditioning else None,
        is_read=torch.rand(captions, generator=generator) < judge_share if judge_share else None,
    )


# Cross-entropy of a linear layer's logits, computed some rows at a time: all of them never exist at once.
# With 50,257 words the logits of a batch, their softmax and its gradient are most of what a step needs memory
# for. Here each chunk's gradient is computed with its loss. (torch's own function of this name, as of 2.13,
# takes two to ten times as long on a CPU and rounds the loss to bfloat16.)

_LOGITS_AT_ONCE = 1 << 24  # 64 MiB in float32: large products, small memory
_WORDS_AT_ONCE = 1 << 13


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean over N of -log softmax(W h)[target], like `F.cross_entropy(F.linear(hidden, weight), target)`.

    Under autocast the products are computed in its precision, all else in float32. Backward works once.

    Args:
        hidden: (N, D).
        weight: (V, D).
        target: (N,).
        label_smoothing: share of the target spread over all words.
    """
    if not torch.is_grad_enabled():
        logits = F.linear(hidden, weight).float()
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, target, label_smoothing)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> Tensor:
        kind, words = hidden.device.type, len(weight)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(kind, enabled=False):
            rows, matrix = hidden.to(dtype), weight.to(dtype)
            rows_gradient = torch.empty_like(rows)
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
            size = max(1, _LOGITS_AT_ONCE // words)
            for some, wanted, gradient in zip(
                rows.split(size), target.unsqueeze(1).split(size), rows_gradient.split(size), strict=True
            ):
                logits = F.linear(some, matrix).float()  # (n, V)
                total += logits.logsumexp(dim=1).sum() - (1 - smoothing) * logits.gather(1, wanted).sum()
                if smoothing:
                    total -= smoothing * logits.mean(dim=1).sum()
                torch.softmax(logits, dim=1, out=logits)  # from here on the loss's gradient in the logits
                logits -= smoothing / words
                logits.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=logits.dtype))
                logits = logits.div_(len(rows)).to(dtype)
                torch.mm(logits, matrix, out=gradient)
                for part, columns in zip(
                    weight_gradient.split(_WORDS_AT_ONCE), logits.split(_WORDS_AT_ONCE, dim=1), strict=True
                ):
                    part += columns.T @ some  # a product of all words would be as large as the weight again
        context.save_for_backward(rows_gradient.to(hidden.dtype), weight_gradient.to(weight.dtype))
        return total / len(rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weight = context.saved_tensors
        return rows.mul_(gradients[0]), weight.mul_(gradients[0]), None, None


# The likelihood of human captions and of their lengths. L_x0 = -log p(x_0 | x_t, y) over all real positions,
# and the cross-entropy of the length head. An autoregressive model's is -log p(word | words before it, y)
# over the same positions.


class Losses(NamedTuple):
    """Mean losses of a batch, as scalar tensors with gradient.

    A tuple, because what shards a model over processes looks for tensors in tuples only.

    Attributes:
        token: mean over the batch's real positions.
        length: mean over its captions; 0 without a length head.
    """

    token: Tensor
    length: Tensor


def caption_loss(
    model: TorchModel,
    batch: CaptionBatch,
    features: ImageFeatures | None,
    noise: Noise | None,
    *,
    image_free_probability: float = 0.0,
    label_smoothing: float = 0.0,
    judge_only: bool = False,
) -> Losses:
    """Noise a batch, predict it, score the prediction.

    Args:
        model: of either kind.
        batch: on the model's device.
        features: of the batch's images; None for captions without images.
        noise: of the batch's images; an autoregressive model needs none.
        image_free_probability: p of special design 4.
        label_smoothing: share of the target spread over the vocabulary.
        judge_only: score the reading of the model's own judge, and no denoising.
    """
    length_logits = None
    use_image = None
    if image_free_probability and features is not None and features.memory is not None and noise is not None:
        use_image = noise.image >= image_free_probability
    if isinstance(model, AutoregressiveModel):
        hidden = model(batch.tokens, features, use_image)  # (B, L, D)
        weight = model.decoder.token_embedding.weight
    elif judge_only:
        assert features is not None
        hidden = model.read(batch.tokens, features, use_image, batch.lengths)
        weight = model.denoiser.token_embedding.weight
    else:
        assert noise is not None
        longest, end = batch.tokens.shape[1], batch.tokens[0, batch.lengths[0] - 1]
        tokens = model.extended(batch.tokens, batch.lengths, end)
        noised, timestep = noise.add_to(tokens, model.schedule), noise.timestep.flatten()
        keys_values = model.keys_values(features, use_image)
        guess = None
        if noise.use_self_cond is not None:
            guess = first_guess(model, batch, noised, timestep, keys_values, noise.use_self_cond.flatten())
        is_read = None
        if noise.is_read is not None:
            is_read = noise.is_read.flatten()
            noised = torch.where(is_read.unsqueeze(1), model.shifted(tokens), noised)
            timestep = torch.where(is_read, 0, timestep)
        hidden = model(noised, timestep, batch.lengths, keys_values, guess=guess, is_read=is_read)[
            :, :longest
        ]  # (B, L, D)
        weight = model.denoiser.token_embedding.weight
        length_logits = None if features is None else model.length_logits(features)
    hidden = hidden.flatten(0, 1)[batch.positions]  # (N, D): the head is the widest layer, spare it padding
    target = batch.tokens.flatten()[batch.positions]  # (N,)
    token_loss = linear_cross_entropy(hidden, weight, target, label_smoothing=label_smoothing)
    if length_logits is None:
        return Losses(token_loss, torch.zeros((), device=target.device))
    captions = len(batch.lengths) // len(length_logits)
    length_logits = length_logits.float().repeat_interleave(captions, dim=0)  # (B, .)
    return Losses(token_loss, F.cross_entropy(length_logits, batch.lengths - 1))


@torch.no_grad()
def first_guess(
    model: DDCapModel,
    batch: CaptionBatch,
    noised: Tensor,
    timestep: Tensor,
    keys_values: MemoryKeysValues,
    use_self_cond: Tensor,
) -> Tensor:
    """(B, L) the likeliest words at real positions, by a pass without gradient; -1 where nothing is told.

    Args:
        model: that self-conditions.
        batch: on the model's device.
        noised: (B, L' >= L) x_t.
        timestep: (B,) t.
        keys_values: of the images.
        use_self_cond: (B,) True for captions that see it.
    """
    shape, kind = batch.tokens.shape, noised.device.type
    # autocast of older torch keeps weights that it casts without gradient for the pass with gradient
    dtype, is_mixed = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=dtype, enabled=is_mixed, cache_enabled=False):
        hidden = model(noised, timestep, batch.lengths, keys_values)[:, : shape[1]]
        rows = hidden.flatten(0, 1)[batch.positions]  # (N, D)
        some = rows.split(max(1, _LOGITS_AT_ONCE // model.config.vocabulary_size))
        words = torch.cat([model.denoiser.logits(part).argmax(dim=1) for part in some])
    guess = torch.full(shape, -1, device=noised.device).flatten()
    guess[batch.positions] = words
    return torch.where(use_self_cond.unsqueeze(1), guess.view(shape), -1)


def batch_features(model: TorchModel, batch: CaptionBatch) -> ImageFeatures | None:
    """The batch's cached features, or the encoder's output on its pixels (no gradient if it is frozen).

    None for captions without images.
    """
    if batch.memory is not None and batch.summary is not None:
        # a cache's are float16, half as much to move to a GPU
        features = ImageFeatures(batch.memory.float(), batch.summary.float(), batch.concepts)
        return features if batch.concepts is not None else model.encoder.with_concepts(features)
    if batch.pixels is None:
        return None if batch.concepts is None else ImageFeatures(None, None, batch.concepts)
    with torch.set_grad_enabled(torch.is_grad_enabled() and model.config.encoder.trainable):
        features = model.encoder(batch.pixels)
    return features if batch.concepts is None else dataclasses.replace(features, concepts=batch.concepts)


# How much a part of a step weighs: a step's loss is the same however many processes and parts compute it.


class Share(NamedTuple):
    """A part's share of its step, times the number of processes, over which gradients are averaged.

    Attributes:
        words: of the real positions of all parts and processes.
        images: of their images.
    """

    words: float
    images: float

    def of(self, losses: Losses, length_weight: float) -> Tensor:
        """Weight the part's mean losses in the step's: words by words, lengths by images."""
        return self.words * losses.token + self.images * length_weight * losses.length


def shares(parts: Sequence[CaptionBatch], accelerator: Accelerator) -> tuple[list[Share], bool]:
    """The share of each of this process's parts, and whether the step has any image at all.

    All processes have to ask together.
    """
    mine = torch.tensor([[part.words, part.images] for part in parts], dtype=torch.float64)  # (parts, 2)
    total = mine.sum(dim=0)
    count = accelerator.num_processes
    if count > 1:
        total = accelerator.reduce(total.float().to(accelerator.device), "sum").cpu().double()
    found = (count * mine / total.clamp(min=1)).tolist()
    return [Share(words, images) for words, images in found], bool(total[1] > 0)


# What a training minimises, as one module: a batch in, losses out. It is what several processes wrap, so
# whatever reads a weight with a gradient happens inside its forward.


class Objective(nn.Module):
    """The likelihood of human captions.

    Args:
        model: of either kind.
        settings: the recipe's training section.
    """

    def __init__(self, model: TorchModel, settings: TrainingSettings) -> None:
        super().__init__()
        self.model = model
        self._settings = settings

    def forward(self, batch: CaptionBatch, noise: Noise | None) -> Losses:
        """Losses of one part of a step.

        Args:
            batch: on the model's device.
            noise: of the batch's images; only a diffusion model needs it.
        """
        return caption_loss(
            self.model,
            batch,
            batch_features(self.model, batch),
            noise,
            image_free_probability=self._settings.image_free_probability,
            label_smoothing=self._settings.label_smoothing,
            judge_only=self._settings.judge_only,
        )
