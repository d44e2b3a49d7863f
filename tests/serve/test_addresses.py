"""Images behind addresses: a real server on this machine, and everything that must not reach it."""

import asyncio
import base64
import ipaddress
import shutil
import ssl
import subprocess
import threading
import time
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from ddcap import Captioner
from ddcap.errors import ImageError
from ddcap.serve.addresses import Fetcher, FetchLimits, is_public, resolve
from ddcap.serve.app import create_app

HERE = ipaddress.ip_address("127.0.0.1")


class Site(BaseHTTPRequestHandler):
    """Serves what the test put into `pages`, and notes who asked for what."""

    pages: typing.ClassVar[dict]
    asked: typing.ClassVar[list]

    def do_GET(self):
        self.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        page = self.pages[self.path]
        status, headers, body = page(self) if callable(page) else page
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for part in [body] if isinstance(body, bytes) else body:
                self.wfile.write(part)
        except OSError:
            pass  # the other side has had enough

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    """A server on loopback: its port, its pages, and what was asked of it."""
    handler = type("Handler", (Site,), {"pages": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handler = handler
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def here(address):
    """The rule of a test: this machine's loopback is as good as public."""
    return address == HERE or is_public(address)


async def names(host, port):
    """A resolver that knows two names, and asks the system for the others."""
    known = {"photos.example": [HERE], "inside.example": [HERE, ipaddress.ip_address("10.0.0.7")]}
    return known.get(host) or await resolve(host, port)


def fetch(url, *, resolve=names, is_allowed=here, certificates=None, **limits):
    limits = FetchLimits(**{"ports": None, **limits})
    fetcher = Fetcher(limits, resolve, is_allowed, certificates)
    return asyncio.run(fetcher.fetch(url, "image"))


def test_a_fetched_image_is_unchanged(site, photos, monkeypatch):
    """The name is kept for the server; neither proxies nor cookies are used."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    port, content = site.server_port, photos[0].read_bytes()
    site.handler.pages["/a.jpg"] = (302, {"location": "/b.jpg", "set-cookie": "a=b"}, b"")
    site.handler.pages["/b.jpg"] = (200, {"content-length": str(len(content))}, content)
    assert fetch(f"http://photos.example:{port}/a.jpg") == content
    assert [path for path, _ in site.handler.asked] == ["/a.jpg", "/b.jpg"]
    for _, headers in site.handler.asked:
        assert headers["host"] == f"photos.example:{port}"
        assert "cookie" not in headers and "authorization" not in headers
        assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "0.0.0.0", "0", "[::1]", "[::]"),
        *("2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "%31%32%37.0.0.1", "127。0。0。1", "①②⑦.0.0.1"),
        *(
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::7f00:1]",
        ),
        *("[2002:7f00:1::]", "[2001:0:7f00:1::1]", "[fe80::1%25lo]", "[fe80::1]", "[fc00::1]", "[ff02::1]"),
        *("169.254.169.254", "[fd00:ec2::254]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
        *(
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "[2001:db8::1]",
            "[3fff::1]",
        ),
        *("inside.example", "nothing.invalid", "a.b@localhost", "x:y@127.0.0.1"),
    ],
)
def test_no_private_address_however_it_is_written(site, host):
    """By the rule that the service has; one private address of several is enough."""
    site.handler.pages["/"] = (200, {}, b"secret")
    for url in (f"http://{host}:{site.server_port}/", f"https://{host}:{site.server_port}/"):
        with pytest.raises(ImageError) as refused:
            fetch(url, is_allowed=is_public)
        assert "secret" not in str(refused.value) and str(refused.value).startswith("image: ")
    assert site.handler.asked == []


@pytest.mark.parametrize(
    "address, expected",
    [("8.8.8.8", True), ("2606:4700::1111", True), ("192.88.99.1", True), ("fec0::1", False), ("::", False)],
)
def test_public_and_private_addresses(address, expected):
    assert is_public(ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize(
    "to",
    [
        "http://localhost:{port}/secret",
        "//127.0.0.1:{port}/secret",
        "http://inside.example:{port}/secret",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "file:///etc/passwd",
        "ftp://127.0.0.1/secret",
        "gopher://127.0.0.1:{port}/_GET",
        "http://a:b@photos.example:{port}/secret",
        "http://photos.example:22/",
    ],
)
def test_a_redirect_is_checked_like_the_first(site, to):
    """The first server may be asked; what it leads to may not."""
    port = site.server_port
    site.handler.pages["/a"] = (302, {"location": to.format(port=port)}, b"")
    site.handler.pages["/secret"] = (200, {}, b"secret")

    async def only_one_name(host, port):
        return [HERE] if host == "photos.example" else await names(host, port)

    seen = []

    def public_and_one(address):  # loopback is allowed while the one name is asked, once
        seen.append(address)
        return len(seen) == 1 or is_public(address)

    with pytest.raises(ImageError):
        fetch(
            f"http://photos.example:{port}/a", resolve=only_one_name, is_allowed=public_and_one, ports=(port,)
        )
    assert [path for path, _ in site.handler.asked] == ["/a"]


def test_the_address_that_was_checked_is_the_one_that_is_asked(site):
    """A name server that answers otherwise the second time is not asked again."""
    site.handler.pages["/"] = (200, {}, b"secret")
    answers = iter([[ipaddress.ip_address("203.0.113.9")], [HERE]])
    questions = []

    async def rebinding(host, _):
        questions.append(host)
        return next(answers)

    with pytest.raises(ImageError, match=r"cannot be downloaded|longer than"):
        fetch(
            f"http://rebinding.example:{site.server_port}/",
            resolve=rebinding,
            is_allowed=lambda address: address != HERE,
            seconds=1.0,
        )
    assert questions == ["rebinding.example"] and site.handler.asked == []


def test_the_next_address_is_tried_where_one_does_not_answer(site):
    site.handler.pages["/"] = (200, {}, b"an image")

    async def two(*_):
        return [ipaddress.ip_address("127.0.0.77"), HERE]  # nobody listens at the first one

    found = fetch(f"http://two.example:{site.server_port}/", resolve=two, is_allowed=lambda _: True)
    assert found == b"an image"


def test_fetching_has_limits(site):
    """On bytes, redirects, seconds, status and port."""
    port, pages = site.server_port, site.handler.pages
    begun = time.monotonic()

    def drip(_):
        return 200, {}, (time.sleep(0.1) or b"x" for _ in range(100))

    pages["/large"] = (200, {}, (b"x" * 1000 for _ in range(1000)))
    pages["/loop"] = (302, {"location": "/loop"}, b"")
    pages["/missing"] = (404, {}, b"secret words of the page")
    pages["/drip"] = drip
    pages["/packed"] = (200, {"content-encoding": "gzip"}, b"\x1f\x8b as it came")
    url = f"http://photos.example:{port}"
    for path, reason in (
        ("/large", "more than 5000 bytes"),
        ("/loop", "redirects more than 2 times"),
        ("/missing", r"status 404\)"),
        ("/drip", r"longer than 0\.5 s"),
    ):
        with pytest.raises(ImageError, match=reason) as refused:
            fetch(url + path, bytes=5000, redirects=2, seconds=0.5)
        assert "secret" not in str(refused.value)
    assert time.monotonic() - begun < 8
    assert fetch(f"{url}/packed") == b"\x1f\x8b as it came"  # nothing is unpacked
    with pytest.raises(ImageError, match="only 80 and 443 are allowed"):
        fetch(f"{url}/packed", ports=(80, 443))
    for wrong in (
        "ftp://photos.example/a",
        "http://",
        "http://[",
        "http://a b/",
        "data:,x",
        "http:///x",
        "x",
    ):
        with pytest.raises(ImageError, match=r"^image: "):
            fetch(wrong)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_for_the_name(site, tmp_path):
    """The connection goes to an address; the name is what is asked for and checked."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key]
    make += [
        "-out",
        certificate,
        "-subj",
        "/CN=photos.example",
        "-addext",
        "subjectAltName=DNS:photos.example",
    ]
    subprocess.run(make, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    asked = []
    server.sni_callback = lambda _, name, __: asked.append(name)
    site.socket = server.wrap_socket(site.socket, server_side=True)
    site.handler.pages["/"] = (200, {}, b"an image")
    trusting = ssl.create_default_context(cafile=certificate)
    assert fetch(f"https://photos.example:{site.server_port}/", certificates=trusting) == b"an image"
    assert asked == ["photos.example"]

    async def other(*_):
        return [HERE]

    for context in (trusting, None):  # of another name; of nobody that is trusted
        name = "other.example" if context else "photos.example"
        with pytest.raises(ImageError, match="cannot be downloaded"):
            fetch(f"https://{name}:{site.server_port}/", resolve=other, certificates=context)


def test_the_service_fetches_only_where_it_is_allowed(site, photos):
    """By JSON, beside images that are sent; without `--allow-urls` nothing is asked."""
    default = Captioner.from_pretrained()
    site.handler.pages["/a.jpg"] = (200, {}, photos[0].read_bytes())
    site.handler.pages["/page"] = (200, {}, b"<!doctype html>secret")
    url = f"http://photos.example:{site.server_port}"
    sent = base64.b64encode(photos[1].read_bytes()).decode()
    with TestClient(create_app(default)) as closed:
        answer = closed.post("/v1/captions", json={"images": [f"{url}/a.jpg"]})
        assert answer.status_code == 422 and "--allow-urls" in answer.json()["error"]
        assert site.handler.asked == []
    fetcher = Fetcher(FetchLimits(ports=None), names, here)
    with TestClient(create_app(default, fetcher=fetcher)) as open_one:
        images = [f"{url}/a.jpg", sent, "http://localhost:1/a.jpg", f"{url}/page", "HTTP://inside.example/"]
        results = open_one.post("/v1/captions", json={"images": images}).json()["results"]
        expected = [caption.text for caption in default(photos[:2])]
        assert [one.get("caption") for one in results] == [*expected, None, None, None]
        assert "cannot be downloaded" in results[2]["error"] and "HTML" in results[3]["error"]
        assert "not on a public host" in results[4]["error"] and "secret" not in str(results)
        scored = open_one.post("/v1/score", json={"image": f"{url}/a.jpg", "captions": ["a dog"]})
        assert scored.status_code == 200
        private = open_one.post("/v1/score", json={"image": "https://inside.example", "captions": ["a"]})
        assert private.status_code == 422 and "not on a public host" in private.json()["error"]
