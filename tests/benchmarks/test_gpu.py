"""benchmarks/gpu.py at tiny size, without a GPU: every part gives a figure."""

import importlib
import json
from pathlib import Path

import forked
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_every_part_is_measured(tmp_path):
    output = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--size", "tiny", "--without-compiling", "--output", str(output)]
    code = f"import runpy, sys; sys.path.insert(0, '{BENCHMARKS}'); runpy.run_module('gpu', None, '__main__')"
    process = forked.Process("-c", code, *options)
    told, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = json.loads(output.read_text())
    trainings = {name: part for name, part in found.items() if name.startswith("training")}
    assert len(trainings) == 6
    for part in trainings.values():
        assert part["images_per_second"] > 0
        assert 0 < part["share_of_product"] < 1
    # attention written out computes what the fused one does; one-hot computes padding, too
    plain, written, one_hot = (
        trainings[f"training, CLIP frozen, {how}, 4 images"]["operations"]
        for how in ("plain", "attention written out", "one-hot")
    )
    assert plain == written < one_hot
    ways = ["exact", "fast", "exact, CUDA graphs", "fast, CUDA graphs", "released loop", "GPT-2"]
    assert [row["way"] for row in found["decoding"]] == ways
    for row in found["decoding"]:
        assert row["seconds"] > 0 and row["per_second"] == pytest.approx(1 / row["seconds"])
        assert row.get("same_captions", 1) == 1
    (default,) = found["default"]
    assert default["per_second"] > 0
    assert "| exact, CUDA graphs |" in told and "| training, CLIP trained, plain, 4 images |" in told


def test_a_part_that_fails_does_not_cost_the_others_their_figures(gpu, tmp_path):
    parts = gpu.Parts(tmp_path / "gpu.json", 100, {})

    def rows():
        yield {"way": "exact", "images": 1, "seconds": 0.5}
        raise RuntimeError("out of memory")

    parts.measure("first", rows)
    parts.measure("second", lambda: 1 // 0)
    parts.measure("third", lambda: {"seconds": 2.0})
    assert json.loads((tmp_path / "gpu.json").read_text()) == {
        "first": [{"way": "exact", "images": 1, "seconds": 0.5}, {"failed": "RuntimeError: out of memory"}],
        "second": {"failed": "ZeroDivisionError: integer division or modulo by zero"},
        "third": {"seconds": 2.0},
    }


def test_what_is_missing_is_measured_when_it_goes_on(gpu, tmp_path):
    parts = gpu.Parts(tmp_path / "gpu.json", 10, {"known": {"seconds": 1.0}, "failed": [{"failed": "why"}]})
    parts.measure("known", lambda: {"seconds": 3.0})
    parts.measure("failed", lambda: iter([{"seconds": 4.0}]))
    parts.measure("long", lambda: {"seconds": 5.0}, seconds=60.0)
    assert parts.result == {
        "known": {"seconds": 1.0},
        "failed": [{"seconds": 4.0}],
        "long": {"failed": "no time was left"},
    }


def test_shares_and_targets_are_told(gpu):
    def row(way, seconds, images=1):
        return {"way": way, "images": images, "seconds": seconds, "per_second": images / seconds}

    result = {
        "machine": "NVIDIA H200",
        "product_per_second": 800e12,
        "training, CLIP trained, plain, 512 images": {
            **{"seconds": 0.2, "images_per_second": 2560.0, "operations": 60e12, "memory_gib": 70.0}
        },
        "training, CLIP trained, compiled, 512 images": {
            **{"seconds": 0.15, "images_per_second": 3413.3, "operations": 0, "memory_gib": 60.0}
        },
        "decoding, compiled": [
            row("GPT-2, static cache, compiled", 0.012),
            row("exact, CUDA graphs", 0.010),
            row("exact, CUDA graphs, compiled", 0.008),
            row("fast, CUDA graphs", 0.004),
            {"way": "fast, compiled", "images": 1, "failed": "no time was left"},
            row("GPT-2, static cache, compiled", 0.02, 8),
        ],
    }
    gpu.add_shares(result, 1e12 * gpu.PEAKS["H200"])
    compiled = result["training, CLIP trained, compiled, 512 images"]
    assert compiled["share_of_product"] == pytest.approx(0.5)
    assert compiled["share_of_peak"] == pytest.approx(400 / 989)
    lines = "\n".join(gpu.tables(result)).splitlines()
    assert "| GPT-2, static cache, compiled | 12.0 (83) | 20.0 (400) |" in lines
    assert "| fast, compiled | failed | |" in lines
    assert "| training, CLIP trained, compiled, 512 images | 3413 | 0.40 | 0.50 | 60.0 |" in lines
    assert "exact, one image: 1.50 times as fast as GPT-2 (target: 1)" in lines
    assert "fast, one image: 3.00 times as fast as GPT-2 (target: 3)" in lines
    assert "training: 0.40 of the peak at most (target: 0.4)" in lines
