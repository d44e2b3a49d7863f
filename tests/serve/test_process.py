"""`ddcap serve` as a process: it answers, and loses no accepted request when it is told to stop."""

import json
import signal
import threading
import time

import pytest

from ddcap.commands import main

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")


@pytest.mark.slow
def test_a_stopped_service_finishes_accepted_requests(start_service, photos, tmp_path):
    """One request at a time: others wait in the queue, and a caption is streamed, when it is told to stop."""
    keys = tmp_path / "keys.txt"
    keys.write_text("sesame # mine\n")
    headers = {"authorization": "Bearer sesame"}
    with start_service("--together", "1", "--keys", str(keys)) as service:
        address, answers, events = service.address, {}, []

        def ask(name):
            files = [("images", (photo.name, photo.read_bytes())) for photo in photos[:4]]
            own = {**headers, "x-request-id": name}
            answers[name] = httpx.post(f"{address}/v1/captions", files=files, headers=own, timeout=120)

        def watch():
            files = {"images": photos[0].read_bytes()}
            url = f"{address}/v1/captions/stream"
            with httpx.stream("POST", url, files=files, headers=headers, timeout=120) as answer:
                events.extend(line for line in answer.iter_lines() if line.startswith("event"))

        names = ["first", "second", "third"]
        threads = [threading.Thread(target=ask, args=(name,)) for name in names]
        threads.append(threading.Thread(target=watch))
        for thread in threads:
            thread.start()
        inside = f"ddcap_inside {3 * 4 + 1}.0"
        while inside not in httpx.get(f"{address}/metrics", headers=headers).text:
            time.sleep(0.01)  # all four are accepted, and one at most is computed
        assert answers == {}
        service.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=120)
        assert [answers[name].status_code for name in names] == [200] * 3
        assert all(len(answers[name].json()["results"]) == 4 for name in names)
        assert all(one.get("caption") for name in names for one in answers[name].json()["results"])
        assert events[-1] == "event: caption" and len(events) > 3
        assert [answers[name].headers["x-request-id"] for name in names] == names
        assert service.process.wait(timeout=60) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{address}/healthz")
        lines = [json.loads(line) for line in service.lines() if line.startswith("{")]
        logged = {line["id"]: line for line in lines}
        for name in names:
            assert logged[name]["status"] == 200 and logged[name]["route"] == "/v1/captions"
            assert logged[name]["bytes"] > 10_000 and logged[name]["ms"] > 0
        text = "\n".join(service.lines())
        assert f"ddcap: listening at {service.address}" in text
        assert "ddcap: ONNX Runtime on cpu, int8 (" in text
        assert "sesame" not in text and photos[0].name not in text
        assert answers["first"].json()["results"][0]["caption"] not in text


def test_files_without_keys_are_refused(tmp_path, capsys):
    empty = tmp_path / "keys.txt"
    empty.write_text("# none yet\n")
    assert main(["serve", "--keys", str(empty)]) == 1
    assert "contains no key" in capsys.readouterr().err
