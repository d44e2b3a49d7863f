import dataclasses
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcap.data.images import load_image
from ddcap.errors import CheckpointError, RecipeError
from ddcap.model.encoders import build_image_encoder
from ddcap.model.features import ImageFeatures
from ddcap.settings import EncoderSettings


def pixels_of(encoder, photos):
    return torch.from_numpy(np.stack([encoder.preprocessing(load_image(photo)) for photo in photos]))


def assert_one_line(error):
    assert "\n" not in str(error.value)


def has_gradients(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


# EfficientNet-Lite: the real network with its real weights, on small images to be quick


@pytest.fixture(scope="module")
def efficientnet():
    return build_image_encoder(EncoderSettings(image_size=100))


@pytest.fixture(scope="module")
def efficientnet_pixels(efficientnet, photos):
    return pixels_of(efficientnet, photos[:2])


def test_efficientnet_shapes(efficientnet, efficientnet_pixels):
    features = efficientnet(efficientnet_pixels)
    assert efficientnet_pixels.shape == (2, 3, 100, 100)
    assert (efficientnet.memory_positions, efficientnet.memory_width) == (16, 1280)
    assert features.memory.shape == (2, efficientnet.memory_positions, efficientnet.memory_width)
    assert features.summary.shape == (2, efficientnet.summary_width)
    torch.testing.assert_close(features.summary, features.memory.mean(dim=1))
    assert not torch.allclose(features.summary[0], features.summary[1], atol=0.1)


@pytest.mark.parametrize("size", [64, 97])
def test_efficientnet_memory_positions_follow_the_image_size(size):
    encoder = build_image_encoder(EncoderSettings(image_size=size), pretrained=False)
    assert encoder(torch.zeros(1, 3, size, size)).memory.shape[1] == encoder.memory_positions


def test_efficientnet_is_frozen(efficientnet, efficientnet_pixels):
    assert not has_gradients(efficientnet)
    assert not efficientnet.training
    assert not efficientnet(efficientnet_pixels).memory.requires_grad


def test_efficientnet_keeps_its_statistics_in_training_mode(efficientnet, efficientnet_pixels):
    before = efficientnet(efficientnet_pixels)
    state = {name: value.clone() for name, value in efficientnet.state_dict().items()}
    efficientnet.train()
    try:
        assert efficientnet.training
        norms = [module for module in efficientnet.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms and not any(norm.training for norm in norms)
        after = efficientnet(efficientnet_pixels)
    finally:
        efficientnet.eval()
    assert torch.equal(after.memory, before.memory)
    assert all(torch.equal(value, state[name]) for name, value in efficientnet.state_dict().items())


def test_efficientnet_batch_is_its_images_one_by_one(efficientnet, efficientnet_pixels):
    together = efficientnet(efficientnet_pixels)
    for row in range(2):
        alone = efficientnet(efficientnet_pixels[row : row + 1])
        torch.testing.assert_close(together.memory[row : row + 1], alone.memory, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.summary[row : row + 1], alone.summary, rtol=1e-3, atol=1e-4)


def test_efficientnet_trainable():
    encoder = build_image_encoder(EncoderSettings(image_size=64, trainable=True), pretrained=False)
    assert has_gradients(encoder)
    assert encoder(torch.zeros(1, 3, 64, 64)).memory.requires_grad


def test_efficientnet_cache_key_names_the_weights(efficientnet):
    random = build_image_encoder(EncoderSettings(image_size=64), pretrained=False)
    assert random.cache_key != efficientnet.cache_key


def test_efficientnet_has_one_variant():
    with pytest.raises(RecipeError, match="lite2") as error:
        build_image_encoder(EncoderSettings(name="lite7"))
    assert_one_line(error)


# CLIP: a tiny vision tower with random weights


@pytest.fixture(scope="module")
def clip(clip_settings):
    return build_image_encoder(clip_settings)


@pytest.fixture(scope="module")
def clip_pixels(clip, photos):
    return pixels_of(clip, photos[:2])


def test_clip_memory_and_summary_are_those_of_transformers(clip, clip_pixels, tiny_clip_folder):
    import transformers

    theirs = transformers.CLIPVisionModelWithProjection.from_pretrained(tiny_clip_folder).eval()
    with torch.no_grad():
        expected = theirs(pixel_values=clip_pixels, output_hidden_states=True)
    features = clip(clip_pixels)
    assert features.memory.shape == (2, 16, 32) == (2, clip.memory_positions, clip.memory_width)
    assert features.summary.shape == (2, 16) == (2, clip.summary_width)
    torch.testing.assert_close(features.memory, expected.hidden_states[-1][:, 1:])  # before post_layernorm
    torch.testing.assert_close(features.summary, expected.image_embeds)


def test_clip_batch_is_its_images_one_by_one(clip, clip_pixels):
    together = clip(clip_pixels)
    for row in range(2):
        alone = clip(clip_pixels[row : row + 1])
        torch.testing.assert_close(together.memory[row : row + 1], alone.memory)
        torch.testing.assert_close(together.summary[row : row + 1], alone.summary)


def test_clip_is_frozen(clip, clip_pixels):
    assert not has_gradients(clip)
    assert not clip.training
    assert not clip(clip_pixels).summary.requires_grad


def test_clip_trainable_leaves_final_norm_and_projection_frozen(trainable_config):
    encoder = build_image_encoder(trainable_config.encoder)
    names = {name for name, _ in encoder.named_parameters()}
    frozen = names - has_gradients(encoder)
    assert frozen == {
        name for name in names if "post_layernorm" in name or name.startswith("network.visual_projection")
    }
    assert len(frozen) == 3


def test_clip_cache_key_follows_the_weights(clip, clip_settings):
    again = build_image_encoder(clip_settings)
    assert again.cache_key == clip.cache_key
    assert build_image_encoder(clip_settings, pretrained=False).cache_key != clip.cache_key


def test_clip_of_another_image_size_is_refused(clip_settings):
    with pytest.raises(RecipeError, match="image_size=32") as error:
        build_image_encoder(EncoderSettings(kind="clip", name=clip_settings.name, image_size=64))
    assert_one_line(error)


def test_a_missing_clip_folder_is_named(tmp_path):
    missing = tmp_path / "nowhere"
    for pretrained in (True, False):
        with pytest.raises(CheckpointError, match="nowhere") as error:
            build_image_encoder(
                EncoderSettings(kind="clip", name=str(missing), image_size=32), pretrained=pretrained
            )
        assert_one_line(error)


@pytest.mark.parametrize("kept", [0, 0.5])
def test_truncated_clip_weights_are_refused(tmp_path, tiny_clip_folder, kept):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_clip_folder, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="cut") as error:
        build_image_encoder(EncoderSettings(kind="clip", name=str(folder), image_size=32))
    assert_one_line(error)


def test_a_clip_without_all_its_weights_is_refused(tmp_path, tiny_clip_folder):
    """transformers would fill what is missing with random numbers."""
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "part")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it has no visual_projection\.weight") as error:
        build_image_encoder(EncoderSettings(kind="clip", name=str(folder), image_size=32))
    assert_one_line(error)


def test_a_revision_is_of_a_clip_only(clip_settings):
    assert dataclasses.replace(clip_settings, revision="0123abc").revision == "0123abc"
    with pytest.raises(ValueError, match=r"encoder\.revision=0123abc: only a CLIP has a revision"):
        EncoderSettings(revision="0123abc")


def test_features_move_together():
    features = ImageFeatures(torch.zeros(1, 2, 3), torch.ones(1, 4)).to("meta")
    assert features.memory.device.type == features.summary.device.type == "meta"
