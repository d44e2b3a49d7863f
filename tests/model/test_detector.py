"""The detector that the default carries, against what TensorFlow.js computes with the published graph."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import ddcap
from ddcap.data.images import load_image
from ddcap.model.detector import CenterNet, SameConv, double_size
from ddcap.model.object_classes import CLASS_NAMES

RECORDED = json.loads((Path(__file__).parent / "recorded_centernet.json").read_text())
DEFAULT = Path(ddcap.__file__).parent / "pretrained" / "default" / "model.safetensors"


@pytest.fixture(scope="module")
def detector():
    weights = {
        name.removeprefix("encoder.detector."): value.float()
        for name, value in load_file(DEFAULT).items()
        if name.startswith("encoder.detector.")
    }
    detector = CenterNet()
    detector.load_state_dict(weights)
    return detector.eval()


@pytest.mark.parametrize("name", RECORDED)
def test_it_sees_what_the_published_graph_sees(detector, photos, name):
    photo = load_image(next(photo for photo in photos if photo.stem == name))
    squashed = photo.resize((512, 512), Image.Resampling.BICUBIC)
    pixels = torch.tensor(np.array(squashed)).permute(2, 0, 1).unsqueeze(0).float()
    with torch.inference_mode():
        maps = detector(pixels)
    recorded = {key: torch.tensor(value) for key, value in RECORDED[name].items()}
    torch.testing.assert_close(maps.heat.amax(dim=(0, 2, 3)), recorded["hottest"], rtol=0, atol=2e-5)
    torch.testing.assert_close(maps.deepest.mean(dim=(0, 2, 3)), recorded["deepest"], rtol=0, atol=1e-4)
    torch.testing.assert_close(maps.sides.mean(dim=(0, 2, 3)), recorded["sides_mean"], rtol=1e-4, atol=1e-3)
    best = CLASS_NAMES[int(maps.heat.amax(dim=(0, 2, 3)).argmax())]
    assert best == {"coffee": "cup", "chelsea": "cat"}[name]


def test_padding_and_doubling_are_tensorflows():
    torch.manual_seed(0)
    conv = SameConv(1, 1, 3, stride=2, bias=False)
    x = torch.randn(1, 1, 4, 4)
    with torch.no_grad():
        # even side, stride 2: no row before, one behind
        plain = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, stride=2)
        torch.testing.assert_close(conv(x), plain)
    row = torch.tensor([[[[1.0, 3.0, 7.0]]]])
    assert double_size(row)[0, 0, 0].tolist() == pytest.approx([1, 2, 3, 5, 7, 7])


def test_a_batch_is_its_pictures_one_by_one(detector):
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 96) * 255
    with torch.inference_mode():
        both, first = detector(pixels), detector(pixels[:1])
    assert both.heat.shape == (2, len(CLASS_NAMES), 16, 24) and both.sizes.shape == (2, 2, 16, 24)
    torch.testing.assert_close(both.heat[:1], first.heat, rtol=1e-4, atol=1e-6)
