"""Measure a service in captions a second: for one client that waits for each answer, and for several.

    python benchmarks/http_rate.py [--clients 1 2 8 16] [--rounds 5] [--captions 40] [--preset fast]

Starts `ddcap serve` itself. The numbers of clients take turns within each round, so that a machine that is
busy with other things is so for all of them; the ratio of each to one client is that within a round.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from ddcap.machine import describe_machine

PHOTOS = sorted((Path(__file__).parents[1] / "examples").rglob("*.jpg"))


def main() -> None:
    """Print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--captions", type=int, default=40, help="in each turn (default: 40)")
    parser.add_argument("--preset", default=None)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = subprocess.Popen(
        [sys.executable, "-m", "ddcap", "serve", "--port", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        bodies = [form(photo.read_bytes(), options.preset) for photo in PHOTOS]
        rate(port, bodies, max(options.clients), len(bodies))  # warm
        rates = {clients: [] for clients in options.clients}
        for _ in range(options.rounds):
            for clients in options.clients:
                rates[clients].append(rate(port, bodies, clients, options.captions))
    finally:
        service.terminate()
        service.wait()
    print(describe_machine())
    for clients, found in rates.items():
        ratios = [one / alone for one, alone in zip(found, rates[options.clients[0]], strict=True)]
        print(
            f"{clients} clients: {statistics.median(found):.1f} captions a second, "
            f"{statistics.median(ratios):.2f} times [{min(ratios):.2f}, {max(ratios):.2f}]"
        )


def wait_for(port: int) -> None:
    """Until the service answers."""
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/readyz")
            connection.getresponse()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service does not start")


def form(content: bytes, preset: str | None) -> bytes:
    """A form with a photograph."""
    options = {} if preset is None else {"preset": preset}
    fields = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in options.items()
    ]
    head = '--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    return "".join([*fields, head]).encode() + content + b"\r\n--x--\r\n"


def rate(port: int, bodies: list[bytes], clients: int, captions: int) -> float:
    """Captions a second, each client asking for one after another."""
    left = iter(list(itertools.islice(itertools.cycle(bodies), captions)))
    lock, wrong = threading.Lock(), []

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                body = next(left, None)
            if body is None:
                return
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            connection.request("POST", "/v1/captions", body, headers)
            answer = json.loads(connection.getresponse().read())
            if "results" not in answer or not answer["results"][0].get("caption"):
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"{len(wrong)} without a caption: {wrong[0]}")
    return captions / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
