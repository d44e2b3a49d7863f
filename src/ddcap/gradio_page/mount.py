"""Puts the page in front of the service, with as few doors as it needs.

Gradio comes with many more routes than a page of its own needs: uploads into temporary files, files of the
machine, a proxy. Only those that the page uses are let through; images come inside requests, and stay in
memory.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddcap.errors import DDCapError, MissingExtraError
from ddcap.gradio_page.login import COOKIE, Visitors
from ddcap.gradio_page.own_files import own_file
from ddcap.serve.limits import ServeLimits
from ddcap.web_interface import INTERFACE

_DOORS = {
    "GET": ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/gradio_api/queue/data"),
    "POST": ("/login", "/gradio_api/queue/join"),
}
_ROOMS = ("/interface/", "/assets/", "/static/", "/svelte/")  # files of the interface and of Gradio, GET
_IDLE = "/gradio_api/heartbeat/"  # a request that never ends: it would hold up the end of the service
_POLICY = (  # the browser asks no other host, whatever Gradio would like
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'; form-action 'self'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def add_page(app: FastAPI, limits: ServeLimits) -> None:
    """Put the page at `/` of a service.

    Args:
        app: of `create_app`, whose engine computes the page's captions.
        limits: on a request; where they have keys, the page asks for one.

    Raises:
        MissingExtraError: if Gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio as gr
    except ImportError:
        raise MissingExtraError("the web page", "web") from None
    from ddcap.gradio_page.blocks import build_page

    inner = FastAPI(openapi_url=None)
    inner.mount("/interface", StaticFiles(directory=INTERFACE))
    blocks = build_page(app.state.engine, limits, app.state.captions.inc)
    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = _take_no_file
    gr.mount_gradio_app(
        inner,
        blocks,
        "/",
        theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        # not as `css`: Gradio would rewrite its selectors
        head=f'<link rel="stylesheet" href="interface/style.css"><style>{own_file("gradio.css")}</style>',
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=1,
    )
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[Any]:
        async with outer(app) as state, inner.router.lifespan_context(inner):
            yield state

    app.router.lifespan_context = lifespan
    door = Door(inner, Visitors(limits.keys))
    app.state.door = door
    app.mount("/", door)


def add_note(app: FastAPI, text: str) -> None:
    """Put a line at `/` of a service that has no page: why, and what helps."""

    @app.get("/", include_in_schema=False)
    async def note() -> PlainTextResponse:
        return PlainTextResponse(f"{text}\n", 404)


async def _take_no_file(*_: Any, **__: Any) -> str:
    """In place of Gradio's fetching of files and addresses that requests name."""
    raise DDCapError("files and URLs are not accepted; send the image itself")


class Door:
    """In front of Gradio: lets through what the page needs, for who may see it.

    Args:
        app: of Gradio.
        visitors: who may.
    """

    def __init__(self, app: ASGIApp, visitors: Visitors) -> None:
        self.app, self.visitors = app, visitors

    def watches(self, scope: Scope) -> bool:
        """Return True if it checks the sender of a request itself."""
        path = scope["path"]
        return path in _DOORS.get(scope["method"].replace("HEAD", "GET"), ()) or path.startswith(
            (*_ROOMS, _IDLE)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await (await self._answer(scope, receive))(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        if not self.watches(scope):
            return JSONResponse({"error": "Not Found"}, 404)
        if scope["path"] == "/login":
            return await self._login(Request(scope, receive))
        if not self.visitors.knows(scope["headers"]):
            return (
                _form()
                if scope["path"] == "/"
                else JSONResponse({"error": "missing API key; enter one at /"}, 401)
            )
        return Response(status_code=204) if scope["path"].startswith(_IDLE) else self.app

    async def _login(self, request: Request) -> Response:
        given = parse_qs((await request.body()).decode("utf-8", "replace")).get("key", [""])[0]
        cookie = self.visitors.cookie_of(given)
        if cookie is None:
            return _form("Unknown key. Try again.")
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, cookie, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return answer


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            message["headers"] = [*message.get("headers", ()), *more]
        await send(message)

    return sent


def _form(error: str = "") -> HTMLResponse:
    return HTMLResponse(own_file("login.html").replace("{error}", escape(error)), 401)
