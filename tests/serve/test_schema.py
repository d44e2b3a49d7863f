"""The service against its own description: schemathesis asks what it allows, and what it does not.

Longer, and with the cases that it works out from each limit, against a running service:

    schemathesis --config-file tests/serve/schemathesis.toml run http://127.0.0.1:8000/openapi.json
"""

import base64
import io
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("schemathesis")

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.generation import GenerationMode

pytestmark = pytest.mark.slow

CONFIG = schemathesis.Config.from_path(Path(__file__).with_name("schemathesis.toml"))


@pytest.fixture(scope="module")
def operations(service):
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json", config=CONFIG)
    found = {one.ok().label: one.ok() for one in schema.get_all_operations()}
    assert {"POST /v1/captions", "POST /v1/captions/stream", "GET /metrics"} < set(found)
    return found


def bounded(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize(
    "kind, mode",
    [
        ("application/json", GenerationMode.POSITIVE),
        ("application/json", GenerationMode.NEGATIVE),
        # wrong forms by test_hostile.py: schemathesis 4.32 stumbles over lists of files ("Unsupported type:
        # 'Binary'") when it wants them wrong
        ("multipart/form-data", GenerationMode.POSITIVE),
    ],
)
def test_answers_are_as_described(operations, kind, mode):
    """No 5xx, no other status, content type or body than described; wrong requests are refused."""
    statuses = set()
    for operation in operations.values():
        if not operation.body and kind != "application/json":
            continue

        @bounded(15 if operation.body else 1)
        @given(case=operation.as_strategy(mode if operation.body else GenerationMode.POSITIVE))
        def ask(case):
            if case.media_type in (kind, None):
                statuses.add(case.call_and_validate().status_code)

        ask()
    assert statuses and statuses <= {200, 400, 413, 415, 422}


@pytest.mark.parametrize(
    "path, field",
    [
        ("captions", "images"),
        ("captions/stream", "images"),
        ("infill", "image"),
        ("rewrite", "image"),
        ("score", "image"),
    ],
)
def test_any_options_with_a_real_image(operations, photos, path, field):
    """What gets past the description reaches the captioner, which either answers or says what is wrong."""
    small = io.BytesIO()
    with Image.open(photos[0]) as photo:
        photo.thumbnail((64, 64))
        photo.save(small, "PNG")
    image, answered = base64.b64encode(small.getvalue()).decode(), []

    @bounded(20)
    @given(case=operations[f"POST /v1/{path}"].as_strategy())
    def ask(case):
        if case.media_type == "application/json":
            case.body = {**case.body, field: [image] if field == "images" else image}
            answered.append(case.call_and_validate().status_code)

    ask()
    assert answered and set(answered) <= {200, 422}


def test_a_wrong_method_gets_the_allowed_ones(service):
    answer = httpx.request("TRACE", f"{service.address}/v1/captions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert answer.json() == {"error": "Method Not Allowed"}
