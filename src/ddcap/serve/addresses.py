"""Images behind addresses: fetched from public hosts only, whatever a name or a redirect leads to.

A service that fetches what strangers name can be sent to hosts that only it can reach: a router, a database,
the metadata of a cloud (server-side request forgery). So a name is resolved here, every address that it has
is checked, and the connection goes to the very address that was checked: a name server that answers the
second question otherwise (DNS rebinding) is not asked again. Each redirect is a request of its own, and
checked like the first.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from ddcap.errors import ImageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[list[Address]]]

_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is routed to the world
_OTHERWISE = (
    ipaddress.ip_network("2002::/16"),  # 6to4: an IPv4 address inside, perhaps a private one
    ipaddress.ip_network("3fff::/20"),  # of documents; older Pythons take it for global
)


def is_public(address: Address) -> bool:
    """Return True for the address of a host on the public internet.

    Refused are private, shared, local, link-local (169.254.169.254), multicast and reserved addresses, and
    every IPv6 address that holds an IPv4 one: mapped, 6to4, Teredo, NAT64.
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    return address in _UNICAST and not any(address in network for network in _OTHERWISE)


async def resolve(host: str, port: int) -> list[Address]:
    """Addresses of a host by the system's resolver, which also reads numbers as 2130706433 and 0177.0.0.1.

    Raises:
        OSError: if it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))


@dataclass(frozen=True)
class FetchLimits:
    """Limits on what is fetched.

    Attributes:
        bytes: of an image.
        seconds: that it may take, redirects and waiting included.
        redirects: that are followed.
        together: images fetched at once.
        ports: that may be asked; None: any.
    """

    bytes: int = 20_000_000
    seconds: float = 10.0
    redirects: int = 3
    together: int = 8
    ports: tuple[int, ...] | None = (80, 443)


class Fetcher:
    """Fetches images that are named by address.

    Args:
        limits: on what is fetched.
        resolve: addresses of a host and port; the system's, unless somebody knows better.
        is_allowed: which addresses may be asked.
        certificates: of https; None: those that the machine trusts.
    """

    def __init__(
        self,
        limits: FetchLimits | None = None,
        resolve: Resolve = resolve,
        is_allowed: Callable[[Address], bool] = is_public,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        self.limits = limits or FetchLimits()
        self._resolve, self._is_allowed = resolve, is_allowed
        self._certificates = certificates or httpx.create_ssl_context()
        self._turn = asyncio.Semaphore(self.limits.together)

    async def fetch(self, url: str, name: str) -> bytes:
        """The bytes behind an address.

        Args:
            url: http or https.
            name: of the image, for messages; nothing of what is found is told.

        Raises:
            ImageError: if it may not, or cannot, be fetched.
        """
        try:
            return await asyncio.wait_for(self._in_turn(url), self.limits.seconds)
        except _RefusedError as error:
            raise ImageError(f"{name}: {error}") from None
        except (asyncio.TimeoutError, TimeoutError):
            reason = f"took longer than {self.limits.seconds:g} s to fetch; send the file instead"
            raise ImageError(f"{name}: {reason}") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            reason = "cannot be downloaded; check the URL, or send the file"
            raise ImageError(f"{name}: {reason}") from None

    async def _in_turn(self, url: str) -> bytes:
        async with self._turn:
            return await self._follow(url)

    async def _follow(self, url: str) -> bytes:
        # no connection is kept for later: an address is not asked again under another name
        plain = httpx.AsyncHTTPTransport(
            self._certificates, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
        transport = _CheckedTransport(plain, self._resolve, self._is_allowed, self.limits.ports)
        # neither proxies nor passwords of the environment or of ~/.netrc
        client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=self.limits.seconds)
        async with client:
            request = client.build_request("GET", url, headers=_HEADERS)
            for _ in range(self.limits.redirects + 1):
                response = await client.send(request, stream=True, follow_redirects=False)
                try:
                    if response.next_request is None:
                        return await self._read(response)
                    request = response.next_request
                finally:
                    await response.aclose()
                client.cookies.clear()
                request.headers.pop("cookie", None)
        raise _RefusedError(f"redirects more than {self.limits.redirects} times; give the final URL")

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise _RefusedError(f"cannot be downloaded (status {response.status_code}); check the URL")
        content = bytearray()
        async for part in response.aiter_raw():  # as it came: nothing is unpacked
            content += part
            if len(content) > self.limits.bytes:
                raise _RefusedError(f"has more than {self.limits.bytes} bytes; send a smaller image")
        return bytes(content)


_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "ddcap"}


class _RefusedError(Exception):
    """An address that is not fetched, and why."""


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Connects to the address that was checked; certificates are still for the name."""

    def __init__(
        self,
        plain: httpx.AsyncHTTPTransport,
        resolve: Resolve,
        is_allowed: Callable[[Address], bool],
        ports: tuple[int, ...] | None,
    ) -> None:
        self._plain, self._resolve, self._is_allowed, self._ports = plain, resolve, is_allowed, ports

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to one of its host's addresses, if all of them are allowed."""
        url, host = request.url, request.url.raw_host.decode("ascii")
        if url.scheme not in ("http", "https") or not host:
            raise _RefusedError("is not an http or https URL; give one, or send the file")
        if url.userinfo:
            raise _RefusedError("contains a user name; give a URL without")
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        if self._ports is not None and port not in self._ports:
            ports = " and ".join(map(str, self._ports))
            raise _RefusedError(f"uses port {port}, but only {ports} are allowed; send the file")
        try:
            found = await self._resolve(host, port)
        except OSError:
            found = []
        # one answer for both: which names there are in a private network is nobody's business
        if not found or not all(self._is_allowed(address) for address in found):
            raise _RefusedError("is not on a public host; check the URL, or send the file")
        for number, address in enumerate(found[:_TRIES], 1):
            pinned = httpx.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,  # "Host" is the name's
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._plain.handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if number == min(_TRIES, len(found)):
                    raise
        raise AssertionError("one address at least was tried")

    async def aclose(self) -> None:
        """Close what is open."""
        await self._plain.aclose()


_TRIES = 3  # addresses of a host
