import itertools
import math

import pytest
import torch

from ddcap.model.config import ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.recipe import TrainingSettings
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings
from ddcap.training.state import build_optimizer, learning_rate_at, set_learning_rate


def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero():
    rates = [learning_rate_at(step, total_steps=100, warmup_steps=10, peak=2.0) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[100] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_a_constant_rate_stays_at_its_peak_after_the_warm_up():
    rates = [learning_rate_at(step, 100, 10, 2.0, "constant") for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert set(rates[10:]) == {2.0}


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate_at(0, total_steps=10, warmup_steps=0, peak=1.0) == 1.0


@pytest.fixture
def model(tiny_clip_folder):
    encoder = EncoderSettings(
        kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop", trainable=True
    )
    settings = ModelSettings(width=16, layers=1, heads=2, projection_hidden=8, length_hidden=8)
    return DDCapModel(ModelConfig(50, encoder, settings, DiffusionSettings(), DecodingSettings()))


def test_groups_cover_every_trainable_parameter_once(model):
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.1, encoder_rate=0.07))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert len(trainable) < len(list(model.parameters()))  # CLIP's final norm and projection stay frozen


def test_one_dimensional_parameters_do_not_decay_and_the_encoder_has_its_own_rate(model):
    optimizer = build_optimizer(
        model, TrainingSettings(learning_rate=1e-3, weight_decay=0.1, encoder_rate=0.07)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    set_learning_rate(optimizer, 1e-3)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.0 if parameter.ndim < 2 else 0.1)
            factor = 0.07 if names[id(parameter)].startswith("encoder.") else 1.0
            assert group["lr"] == pytest.approx(1e-3 * factor)


def test_optimizer_state_can_be_read_with_weights_only(model, tmp_path):
    optimizer = build_optimizer(model, TrainingSettings())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    loaded = torch.load(tmp_path / "optimizer.pt", weights_only=True)
    assert loaded["param_groups"][0]["rate"] == optimizer.param_groups[0]["rate"]
