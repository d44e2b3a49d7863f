"""`ddcap serve`: caption images over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from typing import Any

from ddcap.commands.arguments import add_model, add_precision, load_captioner, tell
from ddcap.errors import DataError, DDCapError, MissingExtraError
from ddcap.values import as_whole


def add_parsers(commands: Any) -> None:
    """Add the command to an argparse subparsers object."""
    serve = commands.add_parser("serve", help="serve captions over HTTP")
    add_model(serve)
    add_precision(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="listen on this address (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument("--port", type=int, default=8000, help="listen on this port (default: 8000)")
    serve.add_argument(
        "--together", type=int, default=8, help="decode up to this many images at a time (default: 8)"
    )
    serve.add_argument(
        "--queue",
        type=int,
        default=64,
        help="let up to this many images wait; refuse further ones (default: 64)",
    )
    serve.add_argument(
        "--seconds", type=float, default=60, help="stop a request after this many seconds (default: 60)"
    )
    serve.add_argument(
        "--max-bytes",
        type=int,
        default=20_000_000,
        help="refuse requests over this many bytes (default: 20000000)",
    )
    serve.add_argument(
        "--max-images", type=int, default=16, help="refuse requests over this many images (default: 16)"
    )
    serve.add_argument(
        "--max-pixels",
        type=int,
        default=50_000_000,
        help="refuse images over this many pixels (default: 50000000)",
    )
    serve.add_argument(
        "--allow-urls",
        action="store_true",
        help="download images given by URL, from public hosts only",
    )
    serve.add_argument(
        "--keys",
        metavar="FILE",
        help="accept only the API keys in FILE, one per line (default: accept every request)",
    )
    serve.add_argument("--no-page", action="store_true", help="do not serve the web page at /")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401 (the service needs it)
        import httpx  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError:
        raise MissingExtraError("serving", "serve") from None
    from ddcap.commands.verbose import describe_choice
    from ddcap.serve.addresses import Fetcher, FetchLimits
    from ddcap.serve.app import create_app
    from ddcap.serve.engine import EngineSettings
    from ddcap.serve.limits import ServeLimits

    _check(options)
    keys = _keys(options.keys)
    logging.getLogger("ddcap.serve").setLevel(logging.INFO)
    limits = ServeLimits(options.max_bytes, options.max_images, options.max_pixels, options.seconds, keys)
    captioner = load_captioner(options)
    for line in describe_choice(captioner, is_chosen=options.precision == "auto"):
        tell(line)
    app = create_app(
        captioner,
        EngineSettings(options.together, options.queue, options.seconds),
        limits,
        Fetcher(FetchLimits(options.max_bytes)) if options.allow_urls else None,
    )
    if not options.no_page:
        _put_page(app, limits)
    settings = uvicorn.Config(
        app, host=options.host, port=options.port, access_log=False, log_level="warning"
    )

    class Server(uvicorn.Server):
        """Says where it is to be found, as soon as it is."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                print(f"ddcap: listening at http://{options.host}:{port}", file=sys.stderr, flush=True)

    server = Server(settings)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is closed
        server.run()
    return 0 if server.started else 1


def _check(options: argparse.Namespace) -> None:
    """Raise `DDCapError` if a number is out of range, before the model is loaded."""
    as_whole("--port", options.port, 0, 65_535)
    as_whole("--queue", options.queue, 0)
    for name in ("together", "max_bytes", "max_images", "max_pixels"):
        as_whole(f"--{name.replace('_', '-')}", getattr(options, name), 1)
    if not 0 < options.seconds < float("inf"):
        raise DDCapError(f"--seconds={options.seconds}: must be above 0")


def _put_page(app: Any, limits: Any) -> None:
    """Add the web page; if its packages are missing, say so at its address and here."""
    from ddcap.gradio_page.mount import add_note, add_page

    try:
        add_page(app, limits)
    except MissingExtraError as error:
        add_note(app, str(error))
        print(f"ddcap: without the web page: {error}; or start with --no-page", file=sys.stderr)


def _keys(path: str | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from ddcap.files import listed_lines

    keys = listed_lines(path, "keys")
    if not keys:
        raise DataError(f"{path}: contains no key; write one per line")
    return keys
