"""Protection of a service from floods: limits on bodies, keys, and a log line for each request."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Histogram

logger = logging.getLogger("ddcap.serve")

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_OPEN = ("/healthz", "/readyz")  # need no key
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class ServeLimits:
    """Limits on a request.

    Attributes:
        bytes: of its body.
        images: in it.
        pixels: of each of them.
        seconds: that its body may take to come.
        keys: one of them has to be given as "Authorization: Bearer KEY"; none: everybody may ask.
    """

    bytes: int = 20_000_000
    images: int = 16
    pixels: int = 50_000_000
    seconds: float = 60.0
    keys: tuple[str, ...] = ()


class Guard:
    """In front of the service: checks the key, counts the body's bytes, gives the request an id, logs a line.

    The log has no image, no caption and no key.

    Args:
        app: the service.
        limits: on a request.
        metrics: where requests are counted: by path and status, and how long they took.
    """

    def __init__(self, app: App, limits: ServeLimits, requests: Counter, seconds: Histogram) -> None:
        self.app, self.limits, self.requests, self.seconds = app, limits, requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, headers = time.monotonic(), dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = name
        status, size, has_begun, is_whole = 500, 0, False, False

        async def counted() -> dict[str, Any]:
            nonlocal size, is_whole
            if is_whole:  # what comes now is that the client has gone
                return await receive()
            left = begun + self.limits.seconds - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except (asyncio.TimeoutError, TimeoutError):
                raise TooSlowError from None
            is_whole = not message.get("more_body", False)
            size += len(message.get("body", b""))
            if size > self.limits.bytes:
                raise TooLargeError
            return message

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status, has_begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            if not (_is_open(scope) or _is_known(headers, self.limits.keys)):
                await refuse(
                    noted,
                    401,
                    "missing or unknown API key; send the header Authorization: Bearer KEY",
                    (b"www-authenticate", b"Bearer"),
                )
            elif _declared(headers) > self.limits.bytes:
                await refuse(noted, 413, f"the body has more than {self.limits.bytes} bytes")
            else:
                await self.app(scope, counted, noted)
        except TooLargeError:
            await refuse(noted, 413, f"the body has more than {self.limits.bytes} bytes")
        except TooSlowError:
            await refuse(
                noted, 408, f"the body takes longer than {self.limits.seconds:g} s to arrive; send less"
            )
        except Exception:  # of our own making: whoever asks hears of it, and finds it in the log by its id
            logger.exception(json.dumps({"id": name, "route": _route(scope)}))
            if has_begun:
                raise  # the connection breaks, so that nobody takes half an answer for a whole one
            await refuse(noted, 500, f"internal error; the log has details under request id {name}")
        finally:
            took = time.monotonic() - begun
            route = _route(scope)
            self.requests.labels(route, str(status)).inc()
            self.seconds.labels(route).observe(took)
            line = {"id": name, "method": scope["method"], "route": route, "status": status}
            logger.info(json.dumps({**line, "bytes": size, "ms": round(1000 * took, 1)}))


class TooLargeError(Exception):
    """The body has more bytes than it may."""


class TooSlowError(Exception):
    """The body takes longer to come than it may."""


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")


def _is_open(scope: Scope) -> bool:
    """Return True for a path that needs no key in its header: the page, if any, asks in its own way."""
    door = getattr(scope["app"].state, "door", None)
    return scope["path"] in _OPEN or (door is not None and door.watches(scope))


def _declared(headers: dict[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


def _is_known(headers: dict[bytes, bytes], keys: Sequence[str]) -> bool:
    """Return True if a known key is given; compared in constant time, all of them."""
    if not keys:
        return True
    kind, _, given = headers.get(b"authorization", b"").partition(b" ")
    found = [hmac.compare_digest(given.strip(), key.encode()) for key in keys]
    return kind.lower() == b"bearer" and any(found)


async def refuse(send: Send, status: int, reason: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error."""
    body = json.dumps({"error": reason}).encode()
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": body})
