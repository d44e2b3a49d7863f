"""FSDP2 with two processes on the CPU, over gloo: what each of them holds."""

import json
import subprocess
import sys

from ddcap.captioner import Captioner

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

SCRIPT = """
import json, sys, torch
from ddcap.machine import leave
from ddcap.recipe import load_recipe
from ddcap.training.run import Run

run = Run(load_recipe(sys.argv[1], sys.argv[3:]), resume=False, progress_bar=iter)
model = run.inputs.model
held = {name: value.to_local().numel() for name, value in model.named_parameters()}
with run.state.shipped_model() as whole:
    kinds = sorted({type(value).__name__ for value in whole.state_dict().values()})
checkpoint = run.state.to_checkpoint(run.progress)
report = {
    "held": held,
    "whole": {name: value.numel() for name, value in model.named_parameters()},
    "shipped": kinds,
    "checkpoint": {name: value.numel() for name, value in checkpoint.weights.items()},
    "average": len(checkpoint.average),
}
open(f"{sys.argv[2]}/{run.processes.index}.json", "w").write(json.dumps(report))
run.accelerator.wait_for_everyone()
leave(0)
"""


def test_each_process_holds_half_and_what_leaves_is_whole(recipe_file, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [*TORCHRUN, str(script)]
    changes = ["training.fsdp=true", f"training.output={tmp_path / 'fsdp'}"]
    done = subprocess.run(
        [sys.executable, *command, str(recipe_file), str(tmp_path), *changes],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{index}.json").read_text()) for index in (0, 1))
    assert any(name.startswith("encoder.network.") for name in first["held"])
    for name, size in first["whole"].items():
        assert first["held"][name] + second["held"][name] == size
    assert sum(first["held"].values()) < 0.6 * sum(first["whole"].values())
    assert first["shipped"] == second["shipped"] == ["Tensor"]
    assert len(first["checkpoint"]) == first["average"] > 0 and second["checkpoint"] == {}
    for name, size in first["checkpoint"].items():
        assert first["whole"].get(name, size) == size


def test_an_efficientnet_too_with_all_that_spares_memory(recipe_file, tmp_path, photos):
    """Its weights lie with channels last."""
    changes = ["encoder.kind=efficientnet_lite", "encoder.name=lite2"]
    changes += ["training.fsdp=true", "training.gradient_checkpointing=true", "training.mixed_precision=bf16"]
    changes += ["training.epochs=1", f"training.output={tmp_path / 'run'}"]
    command = [*TORCHRUN, "-m", "ddcap", "train", str(recipe_file), *changes]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "returned a view tensor" not in done.stderr
    captioner = Captioner.from_pretrained(done.stdout.strip())
    assert captioner(photos[0])[0].length >= 1
