"""The model as a policy: captions drawn from it, with the gradient of the logarithm of their probability.

Shapes: I images, n captions per image, B = I n captions (grouped by image), L positions, S steps, N words
drawn in all, V words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ddcap.decoding.best_first import BestFirstPlan, best_first_step, plan_steps
from ddcap.decoding.generate import choose_lengths, start_tokens
from ddcap.decoding.guidance import Predictor, build_predictor
from ddcap.decoding.left_to_right import decode_left_to_right
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.image_encoder import ImageFeatures
from ddcap.model.kinds import CaptioningModel
from ddcap.recipe import DecodingSettings


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions drawn from a model.

    Attributes:
        tokens: (B, L).
        log_probabilities: (N,) of every word when it was drawn, with gradient.
        caption_of: (N,) which caption the word belongs to.
        share: of the steps, how many these words are from: every word is here with this probability.
    """

    tokens: Tensor
    log_probabilities: Tensor
    caption_of: Tensor
    share: float = 1.0


def draw_captions(
    model: CaptioningModel,
    features: ImageFeatures,
    decoding: DecodingSettings,
    *,
    captions_per_image: int,
    steps: int | None,
    end_id: int,
    generator: torch.Generator,
    learned_steps: int | None = None,
) -> DrawnCaptions:
    """Draw captions without a gradient, then ask once more, with one, for the probability of what was drawn.

    Args:
        model: in evaluation mode, so that both passes agree.
        features: of I images.
        decoding: its length settings are followed; candidates' lengths in turn.
        captions_per_image: n.
        steps: denoising steps; None commits one word a step. An autoregressive model does not read it.
        end_id: the end token.
        generator: source of randomness, on the model's device.
        learned_steps: ask again about the words of so many of the steps only, drawn at random; None: of all.
            An autoregressive model does not read it.
    """
    images = features.images
    if isinstance(model, AutoregressiveModel):
        longest = model.config.model.max_length
        lengths = torch.full((images * captions_per_image,), longest, device=model.device)
        with torch.no_grad():
            blank = start_tokens(lengths, model.mask_id)
            keys_values = model.project_memory(features)
            result = decode_left_to_right(
                model, keys_values, blank, lengths, end_id, may_end=True, temperature=1.0, generator=generator
            )
        tokens = result.tokens
        places = torch.arange(tokens.shape[1], device=tokens.device)
        positions = (places < result.lengths.unsqueeze(1)).flatten().nonzero().squeeze(1)  # (N,)
        logits = model(tokens, features, positions=positions)
        return _drawn(tokens, logits, tokens.flatten()[positions], positions // tokens.shape[1])

    choices = choose_lengths(model, features, decoding, decoding.candidates).view(images, -1)
    turns = torch.arange(captions_per_image, device=choices.device) % choices.shape[1]
    lengths = choices[:, turns].flatten()  # (B,)
    tokens = start_tokens(lengths, model.mask_id)
    plan = plan_steps(lengths, lengths, model.config.diffusion.steps, steps)
    with torch.no_grad():
        keys_values = model.project_memory(features)
        predict = build_predictor(model, keys_values, lengths, 1.0, captions_per_image)
        states = draw_best_first(predict, tokens, plan, model.mask_id, generator)  # (S + 1, B, L)

    final, taken = states[-1], torch.arange(len(plan.timesteps), device=tokens.device)
    if learned_steps is not None:
        order = torch.rand(len(taken), generator=generator, device=taken.device).argsort()
        taken = taken[order[:learned_steps]]

    def by_image(values: Tensor) -> Tensor:
        """(S, B, ...) to (I S n, ...): all states of an image side by side, as the model wants them."""
        split = values.unflatten(1, (images, captions_per_image))
        return split.transpose(0, 1).flatten(0, 2)

    before, after = by_image(states[taken]), by_image(states[taken + 1])
    positions = ((before == model.mask_id) & (after != model.mask_id)).flatten().nonzero().squeeze(1)  # (N,)
    captions = torch.arange(len(final), device=final.device).expand(len(taken), -1)  # (S, B)
    output = model(
        before,
        by_image(plan.timesteps[taken]),
        by_image(lengths.expand(len(taken), -1)),
        features,
        positions=positions,
    )
    caption_of = by_image(captions)[positions // final.shape[1]]
    share = len(taken) / len(plan.timesteps)
    return _drawn(final, output.logits, after.flatten()[positions], caption_of, share)


def draw_best_first(
    predict: Predictor, tokens: Tensor, plan: BestFirstPlan, mask_id: int, generator: torch.Generator
) -> Tensor:
    """Run a best-first plan with drawn words; tokens (S + 1, B, L) before the first step and after each.

    Which positions a step commits follows from the state alone: those where the likeliest word is the most
    certain. So the probability of the whole course is the product of the drawn words' probabilities. (With a
    temperature, `best_first_step` lets the drawn words decide where, and there is no such product.)
    """
    states = [tokens]
    for timestep, quota in zip(plan.timesteps, plan.quotas, strict=True):
        log_probabilities = predict(tokens, timestep)  # (B, L, V)
        where = best_first_step(tokens, log_probabilities, quota, mask_id).committed
        uniform = torch.rand(where.shape, generator=generator, device=tokens.device)[where].unsqueeze(1)
        cumulative = log_probabilities[where].exp().cumsum(dim=1)  # (n, V)
        words = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).squeeze(1)
        tokens = tokens.masked_scatter(where, words.clamp(max=mask_id - 1))
        states.append(tokens)
    return torch.stack(states)


def _drawn(
    tokens: Tensor, logits: Tensor, words: Tensor, caption_of: Tensor, share: float = 1.0
) -> DrawnCaptions:
    log_probabilities = -F.cross_entropy(logits.float(), words, reduction="none")  # (N,)
    return DrawnCaptions(tokens, log_probabilities, caption_of, share)
