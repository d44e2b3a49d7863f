"""A whole pass through a model, from features to logits: what training and decoding share out."""

from typing import NamedTuple

from torch import Tensor


class Output(NamedTuple):
    """Logits (B, L, V) or (N, V), and length logits (I, max_length) or None."""

    logits: Tensor
    length_logits: Tensor | None


def diffusion_pass(model, tokens, timestep, lengths, features, *, use_image=None, positions=None):
    """What a `DDCapModel` predicts."""
    hidden = model(tokens, timestep, lengths, model.keys_values(features, use_image))
    if positions is not None:
        hidden = hidden.flatten(0, 1)[positions]
    return Output(model.denoiser.logits(hidden), None if features is None else model.length_logits(features))


def ar_pass(model, tokens, features, *, positions=None):
    """What an `AutoregressiveModel` predicts: logits of every token given those before it."""
    hidden = model(tokens, features)
    if positions is not None:
        hidden = hidden.flatten(0, 1)[positions]
    return model.decoder.logits(hidden)
