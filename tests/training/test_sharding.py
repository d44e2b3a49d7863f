"""FSDP2 with two processes on the CPU, over gloo: what each of them holds."""

import json

import pytest
from two_processes import run_in_two

from ddcap.captioner import Captioner

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, torch
from ddcap.machine import leave
from ddcap.recipe import load_recipe
from ddcap.training.loop import train
from ddcap.training.run import Run

recipe, folder, clip, efficientnet = json.loads(sys.argv[1])
run = Run(load_recipe(recipe, clip), resume=False, progress_bar=iter)
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
open(f"{folder}/{run.processes.index}.json", "w").write(json.dumps(report))
run.accelerator.wait_for_everyone()
train(load_recipe(recipe, efficientnet))
leave(0)
"""


@pytest.fixture(scope="session")
def reports(shared_recipe, made_once):
    """What each of two processes holds of a CLIP's run; they then trained with an EfficientNet."""

    def make(folder):
        folder.mkdir()
        clip = ["training.fsdp=true", f"training.output={folder / 'clip'}"]
        changes = ["encoder.kind=efficientnet_lite", "encoder.name=lite2", "training.fsdp=true"]
        changes += ["training.gradient_checkpointing=true", "training.mixed_precision=bf16"]
        changes += ["training.epochs=1", f"training.output={folder / 'efficientnet'}"]
        given = json.dumps([str(shared_recipe), str(folder), clip, changes])
        _, said = run_in_two(SCRIPT, given)
        (folder / "stderr.txt").write_text(said)

    return made_once("sharded", make)


def test_each_process_holds_half_and_saved_weights_are_whole(reports):
    first, second = (json.loads((reports / f"{index}.json").read_text()) for index in (0, 1))
    assert any(name.startswith("encoder.network.") for name in first["held"])
    for name, size in first["whole"].items():
        assert first["held"][name] + second["held"][name] == size
    assert sum(first["held"].values()) < 0.6 * sum(first["whole"].values())
    assert first["shipped"] == second["shipped"] == ["Tensor"]
    assert len(first["checkpoint"]) == first["average"] > 0 and second["checkpoint"] == {}
    for name, size in first["checkpoint"].items():
        assert first["whole"].get(name, size) == size


def test_an_efficientnet_trains_sharded_with_all_memory_savings(reports, photos):
    """Its weights lie with channels last."""
    assert "returned a view tensor" not in (reports / "stderr.txt").read_text()
    captioner = Captioner.from_pretrained(reports / "efficientnet" / "best")
    assert captioner(photos[0])[0].length >= 1
