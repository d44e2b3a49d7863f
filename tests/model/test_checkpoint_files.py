"""Reading a model's weights from its folder."""

from pathlib import Path

import pytest
import torch

from ddcap.model.loading import load_model
from ddcap.publishing import find_model

RESET = Path("/proc/self/clear_refs")  # "5": the highest memory is measured anew


def memory(name: str) -> int:
    """A figure of this process from the kernel, in bytes."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not RESET.exists(), reason="the highest memory cannot be measured anew")
def test_loading_holds_the_weights_once():
    folder = find_model("default")
    weights = sum(value.nbytes for value in load_model(folder).state_dict().values())
    try:
        RESET.write_text("5")
    except OSError:
        pytest.skip("the highest memory cannot be measured anew")
    before = memory("VmRSS")
    model = load_model(folder)
    file = (folder / "model.safetensors").stat().st_size  # it is mapped, and counted
    assert memory("VmHWM") - before < 1.5 * weights + file
    assert all(value.dtype == torch.float32 for value in model.parameters())
    convolution = model.encoder.network._conv_head.weight
    assert convolution.is_contiguous(memory_format=torch.channels_last)
