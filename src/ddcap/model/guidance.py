"""Guidance: the prediction with the image against that without it (special design 4, at inference)."""

from __future__ import annotations

from ddcap.arrays import Array


def guide(image_logits: Array, image_free_logits: Array, scale: float | Array) -> Array:
    """Equations 7 and 8: log p(x_0|x_t, f) + s (log p(x_0|x_t, y) - log p(x_0|x_t, f)).

    What the logarithms of normalised probabilities differ in from logits is the same for all words of a
    position, and falls out when the sum is normalised again; so logits are enough.

    Args:
        image_logits: (..., V) with the image.
        image_free_logits: (..., V) with the image-free memory.
        scale: s; 1 gives the first, 0 the second.

    Returns:
        (..., V) logits.
    """
    return image_free_logits + scale * (image_logits - image_free_logits)
