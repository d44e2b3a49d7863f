"""Which graphs a model gets; that they compute what PyTorch does: `test_onnx.py`, `test_onnx_judge.py`."""

import dataclasses

import pytest

from ddcap.model import onnx_export
from ddcap.model.config import GRAPHS, INT8
from ddcap.model.ddcap import DDCapModel

pytest.importorskip("onnxscript")


@pytest.mark.parametrize("judge", ["none", "own", "shared"])
def test_a_model_gets_the_graphs_of_its_parts(config, judge, monkeypatch):
    monkeypatch.setattr(onnx_export, "_export", lambda *_: None)  # it takes a minute; here names are enough
    model = DDCapModel(dataclasses.replace(config, model=dataclasses.replace(config.model, judge=judge)))
    names = [name for name, _ in onnx_export._graphs(model)]
    assert len(names) == len(set(names))
    every = {*names, *(name + INT8 for name in names if name + INT8 in GRAPHS)}
    assert every == {name for name in GRAPHS if judge != "none" or not name.startswith("judge")}
