"""The page itself: parts of Gradio, and two of our own for a dropped picture and for a growing caption."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import gradio as gr
from PIL import Image

from ddcap.captioner import Captioner
from ddcap.decoding.caption import Caption
from ddcap.errors import DDCapError
from ddcap.page.own_files import own_file
from ddcap.page.shown import shown_caption
from ddcap.serve.answers import one_line
from ddcap.serve.bodies import CaptionsBody, InfillBody, checked, picture_bytes
from ddcap.serve.engine import Engine
from ddcap.serve.limits import ServeLimits
from ddcap.serve.pictures import opened

Shown = dict[str, Any]
_SPARE_BYTES = 10_000  # of a request, for what stands beside the picture


def build_page(engine: Engine, limits: ServeLimits, count: Callable[[], None]) -> gr.Blocks:
    """The page, whose captions an engine computes.

    Args:
        engine: of the service; the page's requests stand in its queue like all others.
        limits: on a request.
        count: is called for each answer with captions.
    """
    answers = _Answers(engine, limits, count)
    decoding, longest = engine.captioner.decoding, engine.captioner.model.config.model.max_length
    with gr.Blocks(title="DDCap", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(own_file("head.html"), js_on_load=None, elem_id="head")
        with gr.Row(elem_id="columns"):
            with gr.Column(elem_id="given", min_width=280):
                picture = gr.HTML(
                    value="",
                    html_template=own_file("picture.html"),
                    js_on_load=own_file("picture.js"),
                    apply_default_css=False,
                    elem_id="picture",
                    most_bytes=(limits.bytes - _SPARE_BYTES) * 3 // 4,  # base64 writes four bytes for three
                )
            with gr.Column(elem_id="shown", min_width=280):
                caption = gr.HTML(
                    value=None,
                    html_template=own_file("caption.html"),
                    js_on_load=own_file("caption.js"),
                    apply_default_css=False,
                    elem_id="caption",
                )
                with gr.Column(elem_id="sentence"):
                    template = gr.Textbox(
                        label="A sentence with blanks",
                        info="___ is a blank of any number of tokens, [2] of two",
                        placeholder="a ___ dog on the [2]",
                        lines=1,
                    )
                    fill = gr.Button("Fill the blanks", elem_id="fill")
            with gr.Column(elem_id="asked", min_width=280):
                with gr.Row():
                    include = gr.Textbox(label="Include these words", placeholder="red bicycle, dog", lines=1)
                    ban = gr.Textbox(label="Ban these words", placeholder="man, woman", lines=1)
                with gr.Row():
                    length = gr.Slider(
                        0, longest, 0, step=1, label="Length", info="in tokens; 0: any", buttons=[]
                    )
                    steps = gr.Slider(
                        1, longest, decoding.steps, step=1, label="Steps", info="fewer are faster", buttons=[]
                    )
                with gr.Row():
                    guidance = gr.Slider(
                        0, 3, decoding.guidance, step=0.1, label="Guidance", info="1: off",
                        buttons=[],
                    )  # fmt: skip
                    number = gr.Slider(1, 10, 1, step=1, label="Captions", info="each different", buttons=[])
                again = gr.Button("Caption the picture", variant="primary", elem_id="again")

        dials = [picture, include, ban, length, steps, guidance, number]
        words = [picture, ban, steps, guidance]
        asks = dict(outputs=caption, show_progress="hidden", concurrency_limit=None, api_visibility="private")

        async def refill(event: gr.EventData, *given: Any) -> AsyncIterator[Shown]:
            async for one in answers.refill(event._data, *given):
                yield one

        for event in (picture.upload, again.click, include.submit, ban.submit):
            event(answers.caption, dials, **asks)
        for event in (fill.click, template.submit):
            event(answers.fill, [template, *words], **asks)
        caption.refill(refill, words, **asks)
    page.state_session_capacity = 1  # Gradio keeps what each of so many visitors sent last, pictures included
    return page.queue(default_concurrency_limit=None)


class _Answers:
    """What the page asks for, in words of the service: its bodies check it, its engine computes it."""

    def __init__(self, engine: Engine, limits: ServeLimits, count: Callable[[], None]) -> None:
        self.engine, self.limits, self.count = engine, limits, count
        self._numbers = itertools.count()  # two answers are never the same, so that the page sees the second

    async def caption(
        self,
        picture: str,
        include: str | None,
        ban: str | None,
        length: float,
        steps: float,
        guidance: float,
        number: float,
    ) -> AsyncIterator[Shown]:
        """Captions of the picture."""
        values = {"images": [picture], "num": number, **_dials(ban, steps, guidance)}
        values.update(include=_listed(include), length=length or None)

        async def compute() -> list[Caption]:
            body, content = checked(CaptionsBody, values), _content(picture)

            def work(captioner: Captioner) -> list[Caption]:
                image = self._opened(content)
                (result,) = captioner.caption_each([image], **body.asked())
                if result.error is not None:
                    raise DDCapError(result.error)
                return list(result.captions)

            return await self.engine.run(work)

        async for one in self._told("Captioning the picture …", compute):
            yield one

    async def fill(
        self, template: str | None, picture: str, ban: str | None, steps: float, guidance: float
    ) -> AsyncIterator[Shown]:
        """A sentence with its blanks filled."""
        values = {"image": picture, "template": template or "", **_dials(ban, steps, guidance)}

        async def compute() -> list[Caption]:
            body, content = checked(InfillBody, values), _content(picture)
            return await self.engine.run(
                lambda captioner: [captioner.infill(self._opened(content), body.template, **body.asked())]
            )

        async for one in self._told("Filling the blanks …", compute):
            yield one

    def refill(
        self, asked: Any, picture: str, ban: str | None, steps: float, guidance: float
    ) -> AsyncIterator[Shown]:
        """The caption with some of its words blanked, filled again; perhaps by other words than these."""
        asked = asked if isinstance(asked, dict) else {}
        others = [str(word) for word in asked.get("others") or []]
        return self.fill(
            str(asked.get("template", "")), picture, ",".join([ban or "", *others]), steps, guidance
        )

    def _opened(self, content: bytes) -> Image.Image:
        return opened(content, "the picture", self.limits, self.engine.captioner.model.preprocessing)

    async def _told(self, busy: str, compute: Callable[[], Awaitable[list[Caption]]]) -> AsyncIterator[Shown]:
        """First that it is under way, then the captions or why there are none."""
        yield {"busy": busy, "number": next(self._numbers)}
        try:
            captions = [shown_caption(one) for one in await compute()]
            self.count()
            yield {"captions": captions, "number": next(self._numbers)}
        except DDCapError as error:
            yield {"error": one_line(str(error)), "number": next(self._numbers)}


def _dials(ban: str | None, steps: float, guidance: float) -> dict[str, Any]:
    return {"ban": _listed(ban), "steps": steps, "guidance": guidance}


def _listed(text: str | None) -> list[str] | None:
    """Words between commas; a box that the page has not filled yet comes as None, and says nothing."""
    return [part.strip() for part in (text or "").split(",") if part.strip()] or None


def _content(picture: str) -> bytes:
    if not picture:
        raise DDCapError("there is no image yet; drop one here, or choose a file")
    return picture_bytes(picture, "the picture")
