"""`ddcap serve` as a process: it answers, and loses no accepted request when it is told to stop."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ddcap.commands import main

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")


def test_it_finishes_what_it_has_accepted(photos, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame # mine\n")
    command = [sys.executable, "-m", "ddcap", "serve", "--port", str(port), "--keys", str(keys)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    address, headers = f"http://127.0.0.1:{port}", {"authorization": "Bearer sesame"}
    try:
        for _ in range(600):
            try:
                assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.1)
        answers = []

        def ask():
            files = [("images", (photo.name, photo.read_bytes())) for photo in photos]
            answers.append(httpx.post(f"{address}/v1/captions", files=files, headers=headers, timeout=120))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while "ddcap_inside 0.0" in httpx.get(f"{address}/metrics", headers=headers).text:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=120)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert all(len(answer.json()["results"]) == len(photos) for answer in answers)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    finally:
        process.kill()


def test_keys_that_are_none(tmp_path, capsys):
    empty = tmp_path / "keys.txt"
    empty.write_text("# none yet\n")
    assert main(["serve", "--keys", str(empty)]) == 1
    assert "holds no key" in capsys.readouterr().err
