"""Weights & Biases: figures of a real training in its offline mode, which needs no network and no account."""

import json
import sys

import pytest

from ddcap.errors import MissingExtraError, TrainingError
from ddcap.recipe import load_recipe
from ddcap.training.loop import train
from ddcap.training.weights_and_biases import ID_NAME, WeightsAndBiases

pytestmark = pytest.mark.slow  # it starts a process of its own for every run


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """Nobody is logged in, whoever runs the tests, and nothing would reach a server."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()  # what it has read of the environment goes, too


def test_weights_and_biases_gets_the_log_and_continues_after_a_resumption(recipe_file, tmp_path, monkeypatch):
    ended = []
    real = WeightsAndBiases.finish

    def finish(self, *, failed):
        ended.append((dict(self._run.summary), dict(self._run.config), failed))
        real(self, failed=failed)

    monkeypatch.setattr(WeightsAndBiases, "finish", finish)
    train(load_recipe(recipe_file, ["training.wandb=captions"]))
    output = tmp_path / "run"
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    ((summary, config, failed),) = ended
    for kind in ("train", "validation"):
        last = next(line for line in reversed(lines) if line["kind"] == kind)
        figures = {name: value for name, value in last.items() if isinstance(value, int | float)}
        for name in figures.keys() - {"step"}:
            assert summary[f"{kind}/{name}"] == pytest.approx(figures[name]), name
    assert summary["step"] == lines[-1]["step"] and not failed
    assert config["training"]["wandb"] == "captions"
    name = (output / ID_NAME).read_text()
    assert list((output / "wandb").glob(f"offline-run-*-{name.strip()}"))

    train(load_recipe(recipe_file, ["training.wandb=captions", "training.epochs=5"]), resume=True)
    assert (output / ID_NAME).read_text() == name
    assert ended[1][0]["step"] > summary["step"]


def test_a_missing_login_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(TrainingError, match=r"^training\.wandb=captions: No API key.*; log in, set WANDB_M"):
        WeightsAndBiases("captions", tmp_path, {}, resume=False)


def test_without_the_package_a_training_does_not_start(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"training\.wandb needs .*ddcap\[wandb\]"):
        train(load_recipe(recipe_file, ["training.wandb=captions"]))
    assert not (tmp_path / "run").exists()
