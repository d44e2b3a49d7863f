"""Login to the page of a service that has keys: a form asks for one, a cookie remembers it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie

COOKIE = "ddcap_page"


class Visitors:
    """Tells who has given a known key.

    The cookie is not the key but its code under a secret of this process, so that it ends with the process.

    Args:
        keys: that may ask; none: everybody may.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self._secret = secrets.token_bytes(32)

    def cookie_of(self, key: str) -> str | None:
        """Return the cookie of a known key; None for an unknown one. Compares in constant time."""
        given = key.strip().encode()
        if not any([hmac.compare_digest(given, known.encode()) for known in self.keys]):
            return None
        return self._code(given.decode())

    def knows(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Return True for a request from somebody who has given a key."""
        if not self.keys:
            return True
        given = _cookie(headers).encode()
        return any([hmac.compare_digest(given, self._code(key).encode()) for key in self.keys])

    def _code(self, key: str) -> str:
        return hmac.new(self._secret, key.encode(), hashlib.sha256).hexdigest()


def _cookie(headers: Sequence[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"cookie":
            try:
                found = SimpleCookie(value.decode("latin-1")).get(COOKIE)
            except CookieError:
                continue
            if found is not None:
                return found.value
    return ""
