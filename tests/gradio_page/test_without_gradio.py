"""A service without its page: left out, or because Gradio is not installed."""

import sys

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from ddcap import Captioner
from ddcap.commands import build_parser
from ddcap.commands.serve import _put_page
from ddcap.errors import MissingExtraError
from ddcap.gradio_page.mount import add_page
from ddcap.serve.app import create_app
from ddcap.serve.limits import ServeLimits


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


def test_a_missing_gradio_is_one_line_with_the_remedy(default, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    app = create_app(default)
    with pytest.raises(MissingExtraError, match="web"):
        add_page(app, ServeLimits())
    _put_page(app, ServeLimits())
    told = capsys.readouterr().err
    assert "'.[web]'); or start with --no-page" in told and told.count("\n") == 1
    with TestClient(app) as client:
        note = client.get("/")
        assert note.status_code == 404 and "pip install 'ddcap[web]'" in note.text
        assert client.get("/readyz").status_code == 200
        assert "/" not in client.get("/openapi.json").json()["paths"]


def test_without_a_page_there_is_none(default):
    assert build_parser().parse_args(["serve", "--no-page"]).no_page
    with TestClient(create_app(default)) as client:
        assert client.get("/").json() == {"error": "Not Found"}
