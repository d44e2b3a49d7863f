"""The surest positions of captions, and of those that want the same word, the surest one.

Shapes: B captions, L positions.
"""

from __future__ import annotations

from ddcap.arrays import Array, array_namespace, device


def top_k_confident(is_mask: Array, confidences: Array, quota: Array) -> Array:
    """(B, L) True at the `quota` (B,) surest MASK positions of each caption; of equals, the first."""
    xp = array_namespace(confidences)
    order = xp.argsort(xp.where(is_mask, confidences, -1.0), axis=1, descending=True, stable=True)
    rank = xp.argsort(order, axis=1)  # sorting twice gives ranks without a loop over the batch
    return is_mask & (rank < quota[:, None])


def drop_duplicates(committed: Array, words: Array, confidences: Array) -> Array:
    """`committed` (B, L) without positions whose word is that of a surer one; of equals, the first stays.

    Positions are predicted independently of each other, so that two of them may want the same noun. The next
    step sees that it is there, and chooses another word for the second one.
    """
    xp = array_namespace(words)
    place = xp.arange(words.shape[1], device=device(words))
    one, other = confidences[:, :, None], confidences[:, None, :]  # (B, L, 1), (B, 1, L)
    is_surer = (other > one) | ((other == one) & (place < place[:, None]))
    is_same = (words[:, :, None] == words[:, None, :]) & committed[:, None, :]
    return committed & ~xp.any(is_same & is_surer, axis=2)
