"""Several captions of an image that differ in what they say, not only in how long they are.

Each caption is decoded anew, and words that captions before it have used count less, as in diverse beam
search (Vijayakumar et al. 2018). Not in the paper.

Shapes: I images, V words.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.finishing import Candidates
from ddcap.decoding.trace import DecodingResult
from ddcap.decoding.words import content_tokens

PENALTY = 2.0  # nats that a content word loses for each caption that has used it
_TRIES = 4  # until captions that say the same have to part


def diverse_captions(
    decode_with: Callable[[np.ndarray], Candidates], images: int, count: int, tokenizer: CaptionTokenizer
) -> list[Candidates]:
    """`count` decodings; the best captions of an image in any two differ in their content words.

    Args:
        decode_with: makes candidates for each image, with (I, V) added to the logits of all positions.
        images: I.
        count: captions of each image.
        tokenizer: of the model.
    """
    added = np.zeros((images, tokenizer.vocabulary_size), dtype=np.float32)
    used: list[set[frozenset[str]]] = [set() for _ in range(images)]
    results = []
    for _ in range(count):
        for attempt in range(_TRIES):
            found = decode_with(added)
            best = found.best()
            words = [_content(best, image, tokenizer) for image in range(images)]
            repeats = [image for image in range(images) if frozenset(words[image]) in used[image]]
            if not repeats or attempt == _TRIES - 1:
                break
            for image in repeats:  # more and more, until one of the words gives way
                _take(added[image], words[image], PENALTY * 2 ** (attempt + 1))
        for image in range(images):
            used[image].add(frozenset(words[image]))
            _take(added[image], words[image], PENALTY)
        results.append(found)
    return results


def _content(result: DecodingResult, image: int, tokenizer: CaptionTokenizer) -> dict[str, list[int]]:
    host = result.on_host()
    ids = host.tokens[image, : int(host.lengths[image])].tolist()
    if tokenizer.end_id in ids:
        ids = ids[: ids.index(tokenizer.end_id)]
    return content_tokens(ids, tokenizer)


def _take(added: np.ndarray, words: dict[str, list[int]], penalty: float) -> None:
    for tokens in words.values():
        added[tokens[0]] -= penalty  # the others only go on with it
