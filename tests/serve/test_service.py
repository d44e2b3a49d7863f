"""The service over HTTP, asked as users and as attackers would."""

import asyncio
import base64
import itertools
import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

import numpy as np
from fastapi.testclient import TestClient

from ddcap import Captioner
from ddcap.model.step_request import StepRequest
from ddcap.serve.app import create_app
from ddcap.serve.engine import BusyError, Engine, EngineSettings, TooLateError
from ddcap.serve.joint import JointModel, _Asked
from ddcap.serve.limits import ServeLimits


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture(scope="module")
def client(default):
    with TestClient(create_app(default, EngineSettings(lanes=2))) as client:
        yield client


def as_text(path):
    return base64.b64encode(path.read_bytes()).decode()


def test_captions_by_form_and_by_json(client, default, photos):
    expected = [caption.text for caption in default(photos[:2])]
    files = [("images", (photo.name, photo.read_bytes(), "image/jpeg")) for photo in photos[:2]]
    form = client.post("/v1/captions", files=files)
    plain = client.post("/v1/captions", json={"images": [as_text(photo) for photo in photos[:2]]})
    for answer in (form, plain):
        assert answer.status_code == 200
        assert [one["caption"] for one in answer.json()["results"]] == expected
        assert all(0 < one["sure"] < 1 for one in answer.json()["results"])
    url = client.post("/v1/captions", json={"images": [f"data:image/jpeg;base64,{as_text(photos[0])}"]})
    assert url.json()["results"][0]["caption"] == expected[0]


def test_options_are_those_of_the_command_line(client, photos):
    asked = {"include": ["red ball"], "ban": ["man", "grass"], "max_chars": 90, "preset": "fast", "num": 2}
    answer = client.post("/v1/captions", json={"images": [as_text(photos[0])], **asked}).json()["results"][0]
    assert len(answer["captions"]) == 2
    for text in answer["captions"]:
        assert "red ball" in text and len(text) <= 90 and not {"man", "grass"} & set(text.split())
    form = {"data": {"include": ["red ball"], "max_chars": "90"}}
    files = [("images", ("a.jpg", photos[0].read_bytes()))]
    assert "red ball" in client.post("/v1/captions", files=files, **form).json()["results"][0]["caption"]
    unsure = client.post("/v1/captions", json={"images": [as_text(photos[0])], "min_sure": 0.99}).json()
    assert unsure["results"][0]["caption"] is None and "0.99" in unsure["results"][0]["why"]


def test_a_caption_is_seen_while_it_comes_about(client, default, photos):
    files = [("images", ("a.jpg", photos[0].read_bytes()))]
    with client.stream("POST", "/v1/captions/stream", files=files) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = "".join(answer.iter_text()).strip().split("\n\n")
    kinds = [event.partition("\n")[0] for event in events]
    data = [json.loads(event.partition("data: ")[2]) for event in events]
    assert kinds == ["event: step"] * (len(events) - 1) + ["event: caption"] and len(events) > 5
    blanks = [one["tokens"].count(None) for one in data[:-1]]
    assert blanks[0] == len(data[0]["tokens"]) and blanks == sorted(blanks, reverse=True)
    for before, after in itertools.pairwise(one["tokens"] for one in data[:-1]):
        assert all(piece in (None, now) for piece, now in zip(before, after, strict=True))  # words stay
    assert data[-1]["caption"] == default(photos[0], candidates=1)[0].text
    wrong = client.post("/v1/captions/stream", files=[*files, *files])
    assert wrong.status_code == 422 and "send one image" in wrong.json()["error"]
    asked = {"images": [as_text(photos[0])], "include": ["dog"], "ban": ["dog"]}
    assert "event: error" in client.post("/v1/captions/stream", json=asked).text


def test_infill_rewrite_and_score(client, photos):
    image = as_text(photos[0])
    filled = client.post("/v1/infill", json={"image": image, "template": "a ___ dog"}).json()
    assert filled["caption"].startswith("a ") and filled["caption"].endswith(" dog")
    rewritten = client.post("/v1/rewrite", json={"image": image, "caption": "a bus on the moon"}).json()
    assert "___" in rewritten["template"]
    assert 0 < filled["sure"] < 1 and filled["doubtful"] is not None and 0 < rewritten["sure"] < 1
    scored = client.post("/v1/score", json={"image": image, "captions": ["a dog", "a boat"]}).json()
    assert [one["word"] for one in scored["results"][0]["words"]] == ["a", "dog"]


@pytest.mark.parametrize(
    "path, body, status, reason",
    [
        ("/v1/captions", {}, 422, "images: Field required"),
        ("/v1/captions", {"images": []}, 422, "images"),
        ("/v1/captions", {"images": ["%%%"]}, 422, "images: not valid base64"),
        ("/v1/captions", {"images": [""]}, 422, "image 1: is empty"),
        ("/v1/captions", {"images": ["aGVsbG8="]}, 422, "image 1"),
        ("/v1/captions", {"images": ["aGVsbG8="] * 17}, 413, "17 images, but at most 16"),
        ("/v1/captions", {"images": ["aGVsbG8="], "colour": 1}, 422, "colour: Extra inputs"),
        ("/v1/captions", {"images": ["PHOTO"], "include": ["dog"], "ban": ["dog"]}, 422, "banned"),
        ("/v1/captions", {"images": ["PHOTO"], "preset": "great"}, 422, "preset='great'"),
        ("/v1/infill", {"image": "PHOTO", "template": "no blank"}, 422, "has no blank"),
        ("/v1/rewrite", {"image": "PHOTO", "caption": "!"}, 422, "has no word"),
        ("/v1/score", {"image": "PHOTO", "captions": ["dog " * 40]}, 422, "longest caption"),
        ("/v1/score", {"image": "PHOTO", "captions": []}, 422, "captions"),
        ("/v1/nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_get_one_line(client, photos, path, body, status, reason):
    text = json.dumps(body).replace("PHOTO", as_text(photos[0]))
    answer = client.post(path, content=text, headers={"content-type": "application/json"})
    assert answer.status_code == status and reason in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_an_empty_field_of_a_form_asks_for_nothing(client, default, photos):
    """Pages send the fields that nobody has filled in, too."""
    names = (
        "neutral",
        "num",
        "max_chars",
        "seed",
        "include",
        "ban",
        "prefix",
        "preset",
        "min_sure",
        "concepts",
    )
    files = [("images", ("a.jpg", photos[0].read_bytes()))]
    answer = client.post("/v1/captions", files=files, data=dict.fromkeys(names, ""))
    assert answer.status_code == 200
    assert answer.json()["results"][0]["caption"] == default(photos[0])[0].text
    one = [("image", files[0][1])]
    wrong = client.post("/v1/infill", files=one, data={"template": "", "neutral": ""})
    assert wrong.status_code == 422 and "has no blank" in wrong.json()["error"]


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/captions", {"include": ["dog 猫"]}),
        ("/v1/captions", {"prefix": "猫"}),
        ("/v1/captions", {"suffix": "a 猫"}),
        ("/v1/captions", {"ban": ["猫"]}),
        ("/v1/infill", {"template": "___ 猫 on a table"}),
        ("/v1/infill", {"template": "a ___", "ban": ["猫"]}),
        ("/v1/rewrite", {"caption": "a 猫"}),
        ("/v1/score", {"captions": ["a dog", "a 猫"]}),
    ],
)
def test_words_that_cannot_be_spelled_are_named(client, photos, path, body):
    image = {"images": [as_text(photos[0])]} if path == "/v1/captions" else {"image": as_text(photos[0])}
    answer = client.post(path, json={**image, **body})
    assert answer.status_code == 422 and "this model cannot spell '猫'" in answer.json()["error"]


def test_malformed_bodies_are_refused(client, photos):
    assert (
        client.post("/v1/captions", content=b"{", headers={"content-type": "application/json"}).status_code
        == 422
    )
    assert (
        client.post("/v1/captions", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    )
    assert client.post("/v1/captions").status_code == 415
    files = [("photos", ("a.jpg", photos[0].read_bytes()))]
    assert "send files as 'images'" in client.post("/v1/captions", files=files).json()["error"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert client.post("/v1/captions", content=b"--y\r\n", headers=broken).status_code in (400, 422)
    mixed = [("images", ("a.jpg", photos[0].read_bytes())), ("images", ("b.jpg", b"no image"))]
    good, bad = client.post("/v1/captions", files=mixed).json()["results"]
    assert good["caption"] and "image 2" in bad["error"]


def test_a_body_that_is_too_large_is_not_read(default, photos):
    with TestClient(create_app(default, limits=ServeLimits(bytes=1000))) as small:
        files = [("images", ("a.jpg", photos[0].read_bytes()))]
        assert small.post("/v1/captions", files=files).status_code == 413
        stream = small.post(
            "/v1/captions",
            content=(b"x" * 100 for _ in range(1000)),  # its length is not declared
            headers={"content-type": "application/json"},
        )
        assert stream.status_code == 413 and "1000 bytes" in stream.json()["error"]


def test_requests_need_a_key(default, photos):
    files = [("images", ("a.jpg", photos[0].read_bytes()))]
    with TestClient(create_app(default, limits=ServeLimits(keys=("sesame", "other")))) as closed:
        assert closed.post("/v1/captions", files=files).status_code == 401
        for key, status in (("sesame", 200), ("Sesame", 401), ("", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert closed.post("/v1/captions", files=files, headers=headers).status_code == status
        assert closed.get("/healthz").status_code == closed.get("/readyz").status_code == 200
        assert closed.get("/metrics").status_code == 401


def test_ids_logs_and_counters(client, photos, caplog):
    files = [("images", ("secret_name.jpg", photos[0].read_bytes()))]
    with caplog.at_level(logging.INFO, "ddcap.serve"):
        answer = client.post("/v1/captions", files=files, headers={"x-request-id": "mine-1"})
        other = client.post("/v1/captions", files=files, headers={"x-request-id": "bad id\tx"})
    assert answer.headers["x-request-id"] == "mine-1" and len(other.headers["x-request-id"]) == 32
    line = json.loads(caplog.records[0].message)
    assert line["id"] == "mine-1" and line["status"] == 200 and line["route"] == "/v1/captions"
    assert "secret_name" not in caplog.text and answer.json()["results"][0]["caption"] not in caplog.text
    text = client.get("/metrics").text
    assert (
        'ddcap_requests_total{route="/v1/captions",status="200"}' in text and "ddcap_captions_total" in text
    )
    schema = client.get("/openapi.json").json()
    content = schema["paths"]["/v1/captions"]["post"]["requestBody"]["content"]
    assert {"application/json", "multipart/form-data"} <= set(content)


KINDS = [
    {"length": 9},
    {"candidates": 1, "guidance": 1.5},
    {"length": 9, "include": ["dog"], "preset": "fast"},
    {"length": 8, "guidance": 2.0, "ban": ["a", "man"], "prefix": "there"},
    {"length": 9, "temperature": 0.7, "seed": 3},
    {},
]


def joined(default, works, together=6):
    """What each of `works` gives when all are begun together on one lane, and the lane."""
    engine = Engine(default, EngineSettings(together=together, lanes=1))

    async def all_at_once():
        return await asyncio.gather(*(engine.run(work) for work in works))

    found = asyncio.run(all_at_once())
    assert engine.inside == 0
    engine.close()
    return found, engine.lanes[0]


def test_captions_do_not_depend_on_other_requests(default, photos, monkeypatch):
    """Requests of six kinds, begun together: with guidance and without, with constraints, and draws."""
    monkeypatch.setattr("ddcap.serve.joint.PATIENCE", 0.2)  # a step waits, so that others do join
    asked = [(photo, KINDS[number % 6]) for number, photo in enumerate([*photos, *photos])]
    alone = [default(photo, **kind)[0] for photo, kind in asked]
    works = [lambda one, a=ask: one(a[0], **a[1])[0] for ask in asked]
    found, lane = joined(default, works)
    assert [one.text for one in found] == [one.text for one in alone]
    for one, other in zip(found, alone, strict=True):
        assert one.confidences == pytest.approx(other.confidences, abs=1e-4)
    assert lane.requests_in_steps > 1.3 * lane.steps_run


def test_guided_and_constrained_requests_share_their_steps(default, photos, monkeypatch):
    """Not only those that ask for nothing: of one kind each, so that a step that is shared is theirs."""
    monkeypatch.setattr("ddcap.serve.joint.PATIENCE", 0.5)
    for kind in ({"length": 9, "guidance": 1.5}, {"length": 9, "include": ["dog"], "ban": ["a"]}):
        works = [lambda one, p=photo, k=kind: one(p, **k)[0].text for photo in photos[:3]]
        found, lane = joined(default, works, together=3)
        assert found == [default(photo, **kind)[0].text for photo in photos[:3]]
        assert lane.requests_in_steps > 2 * lane.steps_run


def test_other_jobs_do_not_depend_on_other_requests(default, photos, monkeypatch):
    """Infilling, rewriting and scores beside captions."""
    monkeypatch.setattr("ddcap.serve.joint.PATIENCE", 0.2)
    works = [
        lambda one: one.infill(photos[0], "a ___ dog on the [2]", guidance=1.2).text,
        lambda one: one.rewrite(photos[1], "a bus on the moon").text,
        lambda one: [round(found.fit, 3) for found in one.score(photos[2], ["a dog", "a red boat"])],
        lambda one: [each.text for each in next(one.caption_each([photos[3]], num=3)).captions],
    ]
    found, _ = joined(default, works)
    assert found == [work(default) for work in works]


def test_each_core_has_a_lane(default, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    engine = Engine(default)
    engine.close()
    assert len(engine.lanes) == 3


def test_joint_steps_are_bounded(default):
    """The step that has waited longest, and those like it up to the rows that gain from it."""
    joint = JointModel(default.model, rows=40)
    joint.close()
    memory, other = {"keys_0": np.zeros((1, 6, 5, 64))}, {"keys_0": np.zeros((1, 6, 4, 64))}

    def step(captions, length, of=memory):
        tokens, one = np.zeros((captions, length), dtype=np.int64), np.full(captions, length)
        request, _ = StepRequest.at(tokens, one, one, one[:, None] - 1, None)
        return _Asked(request, 1, of, Future())

    large, first, same, alike = step(5, 13, other), step(1, 10), step(1, 9), step(1, 21)
    of_others, several, late = step(1, 9, other), step(3, 9), step(1, 30)
    joint._waiting = [first, of_others, same, several, alike, late, large]
    assert joint._take() == [first, same, alike]
    assert joint._take() == [of_others]
    assert joint._take() == [several]
    assert joint._has_room() and joint._take() == [late]  # ten more would find room
    assert not joint._has_room() and joint._take() == [large]  # it has more by itself
    assert joint._waiting == []


def test_an_error_in_a_step_reaches_all_that_wait(default, photos, monkeypatch):
    joint = JointModel(default.model)
    monkeypatch.setattr(joint, "_step", lambda _: 1 / 0)
    captioner = Captioner(joint, default.tokenizer)
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(lambda: joint.job(lambda: captioner(photos[0]))) for _ in range(2)]:
            with pytest.raises(ZeroDivisionError):
                future.result(timeout=20)
    joint.close()


def test_a_full_queue_and_a_slow_request():
    class Nothing:
        runtime = "torch"

    engine = Engine(Nothing(), EngineSettings(together=1, queue=1, seconds=0.2))
    gate = threading.Event()

    async def flood():
        first = asyncio.create_task(engine.run(lambda _: gate.wait(5)))
        second = asyncio.create_task(engine.run(lambda _: None))
        await asyncio.sleep(0.05)
        with pytest.raises(BusyError, match="try again in") as busy:
            await engine.run(lambda _: None)
        assert busy.value.retry_after >= 1
        for task in (first, second):
            with pytest.raises(TooLateError, match=r"longer than 0\.2 s"):
                await task
        gate.set()

    asyncio.run(flood())
    engine.close()
    assert engine.inside == 0


def test_a_busy_service_sends_retry_after(default, photos):
    app = create_app(default, EngineSettings(together=1, queue=0))
    with TestClient(app) as busy:
        app.state.engine.inside = 1
        answer = busy.post("/v1/captions", files=[("images", ("a.jpg", photos[0].read_bytes()))])
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        app.state.engine.inside = 0
