import pytest
import torch

from ddcap.model.kinds import build_model
from ddcap.model.stored_model import ModelConfig, read_config
from ddcap.recipe import DecodingSettings, ModelSettings


@pytest.fixture(scope="session")
def tiny_twin_folder(tiny_model_folder, tiny_tokenizer, tmp_path_factory):
    """A saved autoregressive model with random weights, of the size of `tiny_model_folder`'s."""
    theirs = read_config(tiny_model_folder)
    changes = {"kind": "autoregressive", "length_prediction": False, "concentrated_attention": False}
    config = ModelConfig(
        theirs.vocabulary_size,
        theirs.encoder,
        ModelSettings(**{**vars(theirs.model), **changes}),
        theirs.diffusion,
        DecodingSettings(method="left_to_right", guidance=1),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(config)
    folder = tmp_path_factory.mktemp("tiny_twin")
    model.save_pretrained(folder)
    tiny_tokenizer.save(folder)
    return folder
