import dataclasses

import numpy as np
import pytest
import torch

from ddcap.data.images import load_image
from ddcap.model.config import ModelConfig
from ddcap.model.loading import build_model
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings

SEED = 0


def random_model(config):
    """Weights so uneven that every prediction differs from its neighbours; always the same."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        model = build_model(config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.4 * torch.randn_like(parameter)
        if config.model.length_prediction:
            model.length_head.mlp[0].weight *= 2  # photographs get unequal lengths
    return model.eval()


@pytest.fixture(scope="session")
def config(tiny_clip_folder, tiny_tokenizer):
    model = ModelSettings(width=32, layers=2, heads=4, max_length=12, projection_hidden=24, length_hidden=24)
    encoder = EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")
    # fewer steps than the longest caption has tokens, and words that get replaced
    diffusion = DiffusionSettings(steps=8, mask_end=0.9)
    return ModelConfig(tiny_tokenizer.vocabulary_size, encoder, model, diffusion, DecodingSettings())


@pytest.fixture(scope="session")
def tiny_model(config):
    """A random model; tests leave it as it is."""
    return random_model(config)


@pytest.fixture(scope="session")
def model_without_length_head(config):
    settings = ModelSettings(**{**vars(config.model), "length_prediction": False})
    return random_model(
        ModelConfig(config.vocabulary_size, config.encoder, settings, config.diffusion, config.decoding)
    )


@pytest.fixture(scope="session")
def model_with_concepts(config):
    """Builds a random model that sees the concepts of a vocabulary; it predicts no lengths."""

    def build(vocabulary, tokenizer):
        model = dataclasses.replace(config.model, length_prediction=False)
        own = dataclasses.replace(
            config, model=model, concepts=len(vocabulary), vocabulary_size=tokenizer.vocabulary_size
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = build_model(own).eval()
        made.set_vocabulary(vocabulary, tokenizer)
        return made

    return build


@pytest.fixture(scope="session")
def tiny_ar(config):
    """A random autoregressive model; tests leave it as it is."""
    ar = {"kind": "autoregressive", "length_prediction": False, "concentrated_attention": False}
    settings = ModelSettings(**{**vars(config.model), **ar})
    decoding = DecodingSettings(method="left_to_right", guidance=1)
    return random_model(
        ModelConfig(config.vocabulary_size, config.encoder, settings, config.diffusion, decoding)
    )


@pytest.fixture(scope="session")
def features(tiny_model, photos):
    """Of three photographs."""
    encoder = tiny_model.encoder
    with torch.no_grad():
        return encoder(
            torch.from_numpy(np.stack([encoder.preprocessing(load_image(photo)) for photo in photos[:3]]))
        )
