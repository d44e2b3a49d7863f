"""What stands between Gradio and the world, asked over HTTP as an attacker would."""

import base64
import gc
import json
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the page needs the extra [web]")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from ddcap import Captioner
from ddcap.gradio_page.mount import add_page
from ddcap.serve.app import create_app
from ddcap.serve.limits import ServeLimits

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pandas, in Gradio
PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "chelsea.jpg"


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def service(default, **limits):
    limits = ServeLimits(**limits)
    app = create_app(default, limits=limits)
    add_page(app, limits)
    return TestClient(app)


@pytest.fixture(scope="module")
def client(default):
    with service(default) as client:
        yield client


def image():
    return "data:image/jpeg;base64," + base64.b64encode(PHOTO.read_bytes()).decode()


def told(client, asked, session="s", data=()):
    """All that the page would be told."""
    (function,) = client.get("/config").json()["dependencies"]
    body = {"data": data, "fn_index": function["id"], "session_hash": session, "event_data": asked}
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined
    answer = client.get("/gradio_api/queue/data", params={"session_hash": session}).text
    return [json.loads(line.removeprefix("data: ")) for line in answer.split("\n\n") if line]


def last_value(messages):
    (done,) = [one for one in messages if one["msg"] == "process_completed"]
    return done["output"]["data"][0]


def request(**asked):
    """A request of the interface, by default for captions of the image."""
    return {"kind": "caption", "image": image(), "number": 7, **asked}


def test_the_page_asks_the_engine_of_the_service(client, default):
    value = last_value(told(client, request()))
    assert value["captions"][0]["text"] == default(PHOTO)[0].text and value["number"] == 7
    assert client.get("/readyz").json() == {"status": "ready"}


def test_images_of_the_past_are_not_kept(client):
    for number in range(4):
        mark = f"{image()}{number:04}"  # base64, and no two are one string
        told(client, request(image=mark), session=f"visitor {number}")
    gc.collect()
    values = (one.get("value") for one in gc.get_objects() if type(one) is dict and "value" in one)
    kept = {value[-4:] for value in values if isinstance(value, str) and value.startswith("data:image/jpeg")}
    assert (
        len(kept & {f"{number:04}" for number in range(4)}) <= 1
    )  # other services of these tests keep one, too


def test_requests_of_the_page_are_decoded_with_all_others(client):
    lanes = client.app.state.engine.lanes
    before = sum(lane.steps_run for lane in lanes)
    last_value(told(client, request(steps=7)))
    # a word that would stand twice in one step waits for one more
    assert sum(lane.steps_run for lane in lanes) - before in (7, 8)
    counted = client.get("/metrics").text.partition("\nddcap_captions_total ")[2].partition("\n")[0]
    assert float(counted) > 0


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=http://example.org/"),
        ("GET", "/gradio_api/proxy=https://example.hf.space/"),
        ("POST", "/gradio_api/run/caption"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("DELETE", "/"),
        ("GET", "/nothing"),
        ("POST", "/v1/nothing"),
    ],
)
def test_other_routes_of_gradio_are_closed(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 404 and answer.json() == {"error": "Not Found"}


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/a.jpg", "https://example.org/a.jpg", str(PHOTO)])
def test_no_file_and_no_address_is_taken(client, path, monkeypatch):
    """Gradio fetches what looks like a file wherever it stands in a request; here it does not."""
    from gradio import processing_utils

    fetched = []
    for name in ("ssrf_protected_download", "async_ssrf_protected_download", "save_file_to_cache"):
        monkeypatch.setattr(processing_utils, name, lambda *given, **_: fetched.append(given))
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    (done,) = [one for one in told(client, request(image=file)) if one["msg"] == "process_completed"]
    (value,) = done["output"].get("data", [{"error": "Gradio refuses it itself"}])
    assert "error" in value and not fetched
    assert told(client, request(), data=[file])  # whatever comes of it, nothing is fetched
    assert not fetched


@pytest.mark.parametrize(
    "asked, reason",
    [
        ({"image": ""}, "there is no image yet"),
        ({"image": 3}, "there is no image yet"),
        ({"image": "data:text/plain;base64,aGVsbG8="}, "this file is not a readable image"),
        ({"image": "data:image/png;base64,%%%"}, "not valid base64"),
        ({"include": ["dog"], "ban": ["dog"]}, "banned"),
        ({"num": 1000}, "num"),
        ({"steps": "many"}, "steps"),
        ({"kind": "shutdown"}, "unknown request"),
        ({"kind": "infill"}, "template"),
        ({"kind": "infill", "template": "no blank"}, "has no blank"),
        ({"kind": "infill", "template": "a ___", "ban": [None]}, "ban"),
        ({"include": None, "ban": None, "num": None}, None),
    ],
)
def test_wrong_values_are_one_line(client, asked, reason):
    value = last_value(told(client, request(**asked)))
    if reason is None:
        assert "error" not in value
    else:
        assert reason in value["error"] and "\n" not in value["error"]


@pytest.mark.parametrize("asked", [None, "x", [], {"number": "x"}])
def test_malformed_requests_are_one_line(client, asked):
    value = last_value(told(client, asked))
    assert "there is no image yet" in value["error"] and value["number"] == -1


def test_unreadable_images_are_told_from_impossible_requests(client):
    assert last_value(told(client, request(image="data:,base64,aGVsbG8=")))["unreadable"]
    assert "unreadable" not in last_value(told(client, request(include=["dog"], ban=["dog"])))


def test_the_interface_is_handed_out_to_visitors_only(client, default):
    assert "Interface" in client.get("/interface/app.js").text
    assert client.get("/interface/samples/coffee.jpg").headers["content-type"] == "image/jpeg"
    assert client.get("/interface/../__init__.py").status_code == 404
    with service(default, keys=("open sesame",)) as locked:
        assert locked.get("/interface/app.js").status_code == 401


def test_the_limit_on_bytes_holds_for_the_page(default):
    with service(default, bytes=20_000) as small:
        answer = told(small, request())
        assert answer.status_code == 413 and "more than 20000 bytes" in answer.json()["error"]


def test_keys_are_asked_for(default):
    with service(default, keys=("open sesame", "other")) as locked:
        form = locked.get("/")
        assert form.status_code == 401 and 'type="password"' in form.text and "gradio" not in form.text
        assert locked.get("/config").status_code == 401
        assert told_without(locked).status_code == 401
        wrong = locked.post("/login", data={"key": "sesame"})
        assert wrong.status_code == 401 and "Unknown key. Try again." in wrong.text
        assert "set-cookie" not in wrong.headers
        right = locked.post("/login", data={"key": "open sesame"}, follow_redirects=False)
        cookie = right.headers["set-cookie"]
        assert right.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie
        assert "sesame" not in cookie
        assert "captions" in last_value(told(locked, request()))
        assert locked.post("/v1/captions", json={"images": [image()]}).status_code == 401  # of the page only
        assert locked.get("/metrics").status_code == 401
        locked.cookies.clear()
        assert locked.get("/config", headers={"cookie": "ddcap_page=other"}).status_code == 401
        bearer = {"authorization": "Bearer other"}
        assert locked.post("/v1/captions", json={"images": [image()]}, headers=bearer).status_code == 200


def told_without(client):
    return client.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "s"})


def test_the_browser_is_told_to_ask_no_other_host(client):
    headers = client.get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/gradio_api/heartbeat/s").status_code == 204  # it would hold up the end of the service
