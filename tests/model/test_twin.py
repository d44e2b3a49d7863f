import dataclasses

import pytest
import torch
from whole_pass import twin_pass

from ddcap.errors import CheckpointError
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import build_image_encoder
from ddcap.model.features import ImageFeatures
from ddcap.model.kinds import build_model, load_model
from ddcap.model.twin import AutoregressiveModel
from ddcap.settings import DecodingSettings

CAPTIONS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4]])


@pytest.fixture(scope="module")
def twin_config(config):
    settings = dataclasses.replace(
        config.model, kind="autoregressive", length_prediction=False, concentrated_attention=False
    )
    decoding = DecodingSettings(method="left_to_right", guidance=1)
    return dataclasses.replace(config, model=settings, decoding=decoding)


@pytest.fixture(scope="module")
def twin(twin_config):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoregressiveModel(twin_config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def features(twin):
    generator = torch.Generator().manual_seed(0)
    encoder = twin.encoder
    return ImageFeatures(
        torch.randn(2, encoder.memory_positions, encoder.memory_width, generator=generator),
        torch.randn(2, encoder.summary_width, generator=generator),
    )


@torch.no_grad()
def test_a_word_sees_only_those_before_it(twin, features):
    before = twin_pass(twin, CAPTIONS, features)
    assert before.shape == (4, 5, twin.config.vocabulary_size)
    for place in range(5):
        changed = CAPTIONS.clone()
        changed[:, place] = (changed[:, place] + 1) % 10
        after = twin_pass(twin, changed, features)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
        if place < 4:
            assert not torch.allclose(after[:, place + 1], before[:, place + 1])


@torch.no_grad()
def test_word_by_word_with_the_past_is_all_at_once(twin, features):
    expected = twin_pass(twin, CAPTIONS, features)
    keys_values = twin.project_memory(features)
    logits, past = twin.first_logits(4, keys_values)
    for place in range(5):
        torch.testing.assert_close(logits, expected[:, place], rtol=1e-4, atol=1e-5)
        logits, past = twin.next_logits(CAPTIONS[:, place], keys_values, past)
    assert past.words == 6


@torch.no_grad()
def test_a_selected_past_goes_on_from_that_caption(twin, features):
    keys_values = twin.project_memory(ImageFeatures(features.memory[:1], features.summary[:1]))
    _, past = twin.first_logits(4, keys_values)
    _, past = twin.next_logits(CAPTIONS[:, 0], keys_values, past)
    order = torch.tensor([2, 2, 0, 1])
    logits, _ = twin.next_logits(torch.tensor([1, 2, 3, 4]), keys_values, past.select(order))
    captions = torch.stack([CAPTIONS[order, 0], torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.long)])
    expected = twin_pass(twin, captions.T, ImageFeatures(features.memory[:1], features.summary[:1]))
    torch.testing.assert_close(logits, expected[:, 2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logits_at_some_positions_only(twin, features):
    positions = torch.tensor([0, 3, 7, 19])
    some, whole = (
        twin_pass(twin, CAPTIONS, features, positions=positions),
        twin_pass(twin, CAPTIONS, features),
    )
    torch.testing.assert_close(some, whole.flatten(0, 1)[positions])


@torch.no_grad()
def test_every_caption_sees_its_own_picture(twin, features):
    swapped = ImageFeatures(features.memory.flip(0), features.summary.flip(0))
    rows = torch.tensor([2, 3, 0, 1])
    torch.testing.assert_close(
        twin_pass(twin, CAPTIONS[rows], swapped), twin_pass(twin, CAPTIONS, features)[rows]
    )
    assert not torch.allclose(twin_pass(twin, CAPTIONS, swapped), twin_pass(twin, CAPTIONS, features))


def test_a_new_model_leaves_the_encoders_weights_alone(twin_config):
    published = build_image_encoder(twin_config.encoder).state_dict()
    ours = AutoregressiveModel(twin_config).encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in published.items())


def test_it_is_as_large_as_the_denoiser_less_its_timestep(twin_config, config):
    """Same width and depth: what differs are the adaptive norms' weights and the special designs."""

    def weights(model):
        names = (
            "self_attention",
            "cross_attention",
            "mlp",
            "token_embedding",
            "memory_projection",
            "position_embedding",
        )
        return sum(
            value.numel()
            for name, value in model.named_parameters()
            if any(part in name for part in names)
            and not any(part in name for part in ("encoder.", "norm", "length_head"))
        )

    assert weights(build_model(twin_config)) == weights(build_model(config))


def test_a_folder_gives_the_kind_it_holds(twin, tmp_path):
    twin.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, AutoregressiveModel)
    assert loaded.stored_state().keys() == twin.stored_state().keys()
    for name, value in twin.stored_state().items():
        assert torch.equal(loaded.stored_state()[name], value), name
    with pytest.raises(CheckpointError, match="a model of kind 'autoregressive', not 'diffusion'"):
        DDCapModel.from_pretrained(tmp_path)
