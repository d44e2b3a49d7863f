"""What the tests of the service share: one that runs as a process of its own, asked over the network."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import IO

import pytest


@dataclass
class Service:
    """A running `ddcap serve`."""

    process: subprocess.Popen
    address: str
    log: IO[str]

    def lines(self):
        """What it has logged so far."""
        self.log.seek(0)
        return self.log.read().splitlines()


@contextlib.contextmanager
def running_service(*options):
    """`ddcap serve` on two cores without its page, once it is ready, killed at the end."""
    httpx = pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ddcap", "serve", "--no-page", "--port", str(port), *options]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
        try:
            for _ in range(900):
                try:
                    assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            yield Service(process, address, log)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def start_service():
    """See `running_service`."""
    return running_service


@pytest.fixture(scope="module")
def service():
    """One with the default model and settings, for all tests of a file."""
    pytest.importorskip("fastapi")
    with running_service() as running:
        yield running
