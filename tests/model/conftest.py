import copy

import numpy as np
import pytest
import torch

from ddcap.data.images import load_image
from ddcap.model.config import ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings

VOCABULARY = 23


@pytest.fixture(scope="session")
def clip_settings(tiny_clip_folder):
    return EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")


@pytest.fixture(scope="session")
def config(clip_settings):
    model = ModelSettings(
        width=16,
        layers=2,
        heads=2,
        dropout=0.3,
        max_length=9,
        positions=11,
        projection_hidden=12,
        length_hidden=14,
    )
    diffusion = DiffusionSettings(steps=8, mask_end=0.9)
    return ModelConfig(VOCABULARY, clip_settings, model, diffusion, DecodingSettings(guidance=1.3))


@pytest.fixture(scope="session")
def perturbed():
    """A function that builds a module and makes every trained weight differ from its start, always alike."""

    def perturbed(build, *arguments, seed=0):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            module = build(*arguments)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter += 0.3 * torch.randn_like(parameter)
        return module.eval()

    return perturbed


@pytest.fixture(scope="session")
def shared_model(config, perturbed):
    return perturbed(DDCapModel, config)


@pytest.fixture
def model(shared_model):
    """A random model that a test may change."""
    return copy.deepcopy(shared_model)


@pytest.fixture(scope="session")
def features(shared_model, photos):
    """Of two photographs."""
    encoder = shared_model.encoder
    pixels = torch.from_numpy(np.stack([encoder.preprocessing(load_image(photo)) for photo in photos[:2]]))
    with torch.no_grad():
        return encoder(pixels)


@pytest.fixture(scope="session")
def trainable_config(config, clip_settings):
    encoder = EncoderSettings(kind="clip", name=clip_settings.name, image_size=32, fit="crop", trainable=True)
    return ModelConfig(VOCABULARY, encoder, config.model, config.diffusion, config.decoding)


@pytest.fixture
def trainable_model(trainable_config, perturbed):
    return perturbed(DDCapModel, trainable_config, seed=1)
