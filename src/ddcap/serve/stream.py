"""A caption while it comes about: the words of each step as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from ddcap.arrays import Array, to_host
from ddcap.captioner import Captioner
from ddcap.decoding.caption import ImageResult
from ddcap.errors import DDCapError
from ddcap.model.features import ImageFeatures
from ddcap.serve.engine import Engine

logger = logging.getLogger("ddcap.serve")


class WatchedModel:
    """A model whose decoding is watched; else like the model itself.

    Args:
        model: any that decodes in steps.
        watch: told the captions (B, L) before each step, MASK where there is no word yet.
    """

    def __init__(self, model: Any, watch: Callable[[Array], None]) -> None:
        self._model, self._watch = model, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def denoising_steps(self, features: ImageFeatures, *, with_image_free: bool) -> Any:
        """See `OnnxModel.denoising_steps`."""
        steps = self._model.denoising_steps(features, with_image_free=with_image_free)
        return _WatchedSteps(steps, self._watch)


class _WatchedSteps:
    def __init__(self, steps: Any, watch: Callable[[Array], None]) -> None:
        self._steps, self._watch = steps, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)

    def likeliest(self, tokens: Array, *rest: Any) -> tuple[Array, Array]:
        self._watch(tokens)
        found: tuple[Array, Array] = self._steps.likeliest(tokens, *rest)
        return found

    def logits(self, tokens: Array, *rest: Any) -> tuple[Array, Array | None]:
        self._watch(tokens)
        found: tuple[Array, Array | None] = self._steps.logits(tokens, *rest)
        return found


async def caption_events(
    engine: Engine, work: Callable[[Captioner], ImageResult], answer_of: Callable[[ImageResult], Any]
) -> AsyncIterator[str]:
    """Events of one caption: "step" with its tokens so far (null: not yet), then "caption", or "error".

    Args:
        engine: that computes it.
        work: captions one picture, with one candidate.
        answer_of: what is said of the result.
    """
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[str, Any]]()
    tokenizer = engine.captioner.tokenizer

    def watch(tokens: Array) -> None:
        ids = to_host(tokens)[0].tolist()
        pieces = [
            None if token == tokenizer.mask_id else piece
            for token, piece in zip(ids, tokenizer.pieces(ids), strict=True)
        ]
        loop.call_soon_threadsafe(queue.put_nowait, ("step", {"tokens": pieces}))

    def watched(captioner: Captioner) -> ImageResult:
        model = WatchedModel(captioner.model, watch)
        return work(Captioner(model, captioner.tokenizer, confidence=captioner.confidence))

    async def compute() -> None:
        try:
            answer = answer_of(await engine.run(watched))
            await queue.put(("error" if "error" in answer else "caption", answer))
        except DDCapError as error:
            await queue.put(("error", {"error": str(error)}))
        except Exception:  # the status is sent, so this is the only way to say so
            logger.exception("error while streaming a caption")
            await queue.put(("error", {"error": "internal error; see the log of the service"}))

    task = asyncio.create_task(compute())
    try:
        kind = "step"
        while kind == "step":
            kind, data = await queue.get()
            yield f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
    finally:
        await task
