"""benchmarks/gpu.py at tiny size, without a GPU: every part gives a figure."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_part_is_measured(tmp_path):
    output = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--size", "tiny", "--without-compiling", "--output", str(output)]
    subprocess.run([sys.executable, str(BENCHMARKS / "gpu.py"), *options], check=True, capture_output=True)
    found = json.loads(output.read_text())
    trainings = {name: part for name, part in found.items() if name.startswith("training")}
    assert len(trainings) == 4
    for part in trainings.values():
        assert part["images_per_second"] > 0
        assert 0 < part["share_of_product"] < 1
    # attention written out computes what the fused one does
    plain, written = (
        trainings[f"training, CLIP frozen, {how}"] for how in ("plain", "attention written out")
    )
    assert plain["operations"] == written["operations"]
    assert {row["way"] for row in found["decoding"]} >= {"exact", "fast", "released loop", "GPT-2"}
    assert not [row for row in found["decoding"] if "failed" in row]
    assert found["default"]["per_second"] > 0
