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
from ddcap.serve.engine import Engine

logger = logging.getLogger("ddcap.serve")


async def caption_events(
    engine: Engine, work: Callable[[Captioner], ImageResult], answer_of: Callable[[ImageResult], Any]
) -> AsyncIterator[str]:
    """Events of one caption: "step" with its tokens so far (null: not yet), then "caption", or "error".

    Args:
        engine: that computes it.
        work: captions one image, with one candidate.
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
        shared = (captioner.model, captioner.tokenizer, captioner.precision, captioner.confidence)
        return work(Captioner(*shared, watch))

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
