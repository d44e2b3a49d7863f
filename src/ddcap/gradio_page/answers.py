"""Answers to the page's requests: the service's bodies check them, its engine computes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from PIL import Image
from pydantic import BaseModel, Field

from ddcap.captioner import Captioner
from ddcap.choices import Alternative, caption_drafts, word_alternatives
from ddcap.decoding.caption import Caption
from ddcap.errors import DDCapError, ImageError
from ddcap.gradio_page.shown import shown_caption
from ddcap.serve.answers import one_line
from ddcap.serve.bodies import CaptionsBody, InfillBody, Words, checked, image_bytes
from ddcap.serve.engine import Engine
from ddcap.serve.images import opened
from ddcap.serve.limits import ServeLimits

_NAME = "the image"
_OPTIONS = ("ban", "steps", "guidance")  # of captions and of filled blanks


class _AlternativesBody(BaseModel):
    """A word of a caption that is to be another one."""

    words: Words
    place: int = Field(ge=0)
    ban: Words | None = None
    guidance: float | None = Field(None, ge=0, le=10)


class Answers:
    """Answers the requests of the interface, see app.js of the interface.

    Args:
        engine: of the service.
        limits: on a request.
        count: is called for each answer with captions.
    """

    def __init__(self, engine: Engine, limits: ServeLimits, count: Callable[[], None]) -> None:
        self.engine, self.limits, self.count = engine, limits, count
        self._kinds: dict[str, Callable[[dict[str, Any], bytes], Awaitable[dict[str, Any]]]] = {
            "caption": self._caption,
            "infill": self._infill,
            "alternatives": self._alternatives,
        }

    async def answer(self, asked: Any) -> dict[str, Any]:
        """Answer a request, or say in one line why it cannot be answered."""
        asked = asked if isinstance(asked, dict) else {}
        number = asked.get("number")
        number = number if isinstance(number, int) else -1
        try:
            content = _content(asked.get("image"))
            compute = self._kinds.get(str(asked.get("kind")), self._unknown)
            found = await compute(asked, content)
        except ImageError as error:
            return {"number": number, "error": _about_image(one_line(str(error))), "unreadable": True}
        except DDCapError as error:
            return {"number": number, "error": one_line(str(error))}
        if "captions" in found:
            self.count()
        return {"number": number, **found}

    async def _caption(self, asked: dict[str, Any], content: bytes) -> dict[str, Any]:
        """Captions of the image, the likeliest first: as many as are asked for, or one and its drafts."""
        num = asked.get("num")
        body = checked(
            CaptionsBody,
            {
                "images": [""],
                "include": asked.get("include") or None,
                "length": asked.get("length"),
                "num": num or 1,
                **_options(asked),
            },
        )

        def work(captioner: Captioner) -> list[Caption]:
            options, image = body.asked(), self._opened(content)
            if not num:
                del options["num"]
                options.pop("seed", None)
                return list(caption_drafts(captioner, image, **options))
            (result,) = captioner.caption_each([image], **options)
            if result.error is not None:
                raise ImageError(result.error)
            return list(result.captions)

        return await self._shown(work, body.steps)

    async def _infill(self, asked: dict[str, Any], content: bytes) -> dict[str, Any]:
        """A sentence with its blanks filled."""
        body = checked(InfillBody, {"image": "", "template": asked.get("template"), **_options(asked)})

        def work(captioner: Captioner) -> list[Caption]:
            return [captioner.infill(self._opened(content), body.template, **body.asked())]

        return await self._shown(work, body.steps)

    async def _alternatives(self, asked: dict[str, Any], content: bytes) -> dict[str, Any]:
        """Words that could stand in place of one."""
        body = checked(_AlternativesBody, {name: asked.get(name) for name in _AlternativesBody.model_fields})

        def work(captioner: Captioner) -> list[Alternative]:
            image = self._opened(content)
            return word_alternatives(
                captioner, image, body.words, body.place, ban=body.ban or (), guidance=body.guidance
            )

        return {"alternatives": [vars(one) for one in await self.engine.run(work)]}

    async def _unknown(self, asked: dict[str, Any], _: bytes) -> dict[str, Any]:
        raise DDCapError(f"{str(asked.get('kind'))[:40]!r}: unknown request; reload the page")

    async def _shown(self, work: Callable[[Captioner], list[Caption]], steps: int | None) -> dict[str, Any]:
        captions = await self.engine.run(work)
        steps = steps or self.engine.captioner.decoding.steps
        return {"captions": [shown_caption(one, steps) for one in captions]}

    def _opened(self, content: bytes) -> Image.Image:
        return opened(content, _NAME, self.limits, self.engine.captioner.model.preprocessing)


def _options(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: asked.get(name) or None for name in _OPTIONS}


def _content(image: Any) -> bytes:
    if not isinstance(image, str) or not image:
        raise DDCapError("there is no image yet; drop one here, or choose a file")
    return image_bytes(image, _NAME)


def _about_image(message: str) -> str:
    """Say what is wrong with an image, for somebody who sees no file names."""
    reason = message.removeprefix(f"{_NAME}: ")
    return reason if "pixels" in reason else f"this file is not a readable image ({reason})"
