"""A Chromium without a window, and what it looks at: a folder as a static host serves it, or the service."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from ddcap import Captioner
    from ddcap.serve.engine import EngineSettings
    from ddcap.serve.limits import ServeLimits

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ALONE = [  # it asks nobody for anything
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium(program: str | None = CHROMIUM) -> Iterator[Browser]:
    """The Chromium of the machine, driven by Playwright.

    Args:
        program: its path.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ALONE)
        yield browser
        browser.close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (as the library has it)
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
        ".webmanifest": "application/manifest+json",
    }

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def static_host(folder: Path) -> Iterator[str]:
    """A folder served without headers of its own; the address."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class PagedService:
    """A service with its page, in a thread of this process, on a port of its own.

    Args:
        captioner: of the service.
        limits: on a request.
        settings: how much it does at once.

    Attributes:
        app: of the service.
        address: once it is entered.
    """

    def __init__(
        self,
        captioner: Captioner,
        limits: ServeLimits | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        import uvicorn

        from ddcap.gradio_page.mount import add_page
        from ddcap.serve.app import create_app
        from ddcap.serve.limits import ServeLimits

        limits = limits or ServeLimits()
        self.app = create_app(captioner, settings, limits)
        add_page(self.app, limits)
        self._server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run)

    def __enter__(self) -> PagedService:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.02)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "an open page holds up the end of the service"
