"""The page itself: the web interface as one part of Gradio, and who answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from ddcap.gradio_page.answers import Answers
from ddcap.gradio_page.own_files import own_file
from ddcap.serve.engine import Engine
from ddcap.serve.limits import ServeLimits
from ddcap.web_interface import interface_body

_SPARE_BYTES = 10_000  # of a request, for what stands beside the image


def build_page(engine: Engine, limits: ServeLimits, count: Callable[[], None]) -> gr.Blocks:
    """Build the page, whose captions an engine computes.

    Args:
        engine: of the service; the page's requests stand in its queue like all others.
        limits: on a request.
        count: is called for each answer with captions.
    """
    answers = Answers(engine, limits, count)

    async def ask(event: gr.EventData) -> AsyncIterator[dict[str, Any]]:
        yield await answers.answer(event._data)

    with gr.Blocks(title="DDCap: a caption, word by word", analytics_enabled=False, fill_width=True) as page:
        interface = gr.HTML(
            value=None,
            html_template=interface_body(),
            js_on_load=own_file("engine.js"),
            apply_default_css=False,
            elem_id="interface",
            setup={
                "longest": engine.captioner.model.config.model.max_length,
                "mostBytes": (limits.bytes - _SPARE_BYTES) * 3 // 4,  # base64 writes four bytes for three
                "seconds": limits.seconds,
            },
        )
        interface.ask(
            ask,
            outputs=interface,
            show_progress="hidden",
            concurrency_limit=None,
            trigger_mode="multiple",
            api_visibility="private",
        )
    page.state_session_capacity = 1  # Gradio keeps what each of so many visitors sent last, images included
    return page.queue(default_concurrency_limit=None)
