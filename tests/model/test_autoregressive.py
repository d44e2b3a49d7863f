import dataclasses

import pytest
import torch
from whole_pass import ar_pass

from ddcap.errors import CheckpointError
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import build_image_encoder
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import build_model, load_model
from ddcap.settings import DecodingSettings

CAPTIONS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9], [3, 2, 3, 8, 4]])


@pytest.fixture(scope="module")
def ar_config(config):
    settings = dataclasses.replace(
        config.model, kind="autoregressive", length_prediction=False, concentrated_attention=False
    )
    decoding = DecodingSettings(method="left_to_right", guidance=1)
    return dataclasses.replace(config, model=settings, decoding=decoding)


@pytest.fixture(scope="module")
def ar(ar_config):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoregressiveModel(ar_config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def features(ar):
    generator = torch.Generator().manual_seed(0)
    encoder = ar.encoder
    return ImageFeatures(
        torch.randn(2, encoder.memory_positions, encoder.memory_width, generator=generator),
        torch.randn(2, encoder.summary_width, generator=generator),
    )


@torch.no_grad()
def test_a_word_sees_only_those_before_it(ar, features):
    before = ar_pass(ar, CAPTIONS, features)
    assert before.shape == (4, 5, ar.config.vocabulary_size)
    for place in range(5):
        changed = CAPTIONS.clone()
        changed[:, place] = (changed[:, place] + 1) % 10
        after = ar_pass(ar, changed, features)
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
        if place < 4:
            assert not torch.allclose(after[:, place + 1], before[:, place + 1])


@torch.no_grad()
def test_word_by_word_with_the_past_is_all_at_once(ar, features):
    expected = ar_pass(ar, CAPTIONS, features)
    keys_values = ar.project_memory(features)
    logits, past = ar.first_logits(4, keys_values)
    for place in range(5):
        torch.testing.assert_close(logits, expected[:, place], rtol=1e-4, atol=1e-5)
        logits, past = ar.next_logits(CAPTIONS[:, place], keys_values, past)
    assert past.words == 6


@torch.no_grad()
def test_a_selected_past_goes_on_from_that_caption(ar, features):
    keys_values = ar.project_memory(ImageFeatures(features.memory[:1], features.summary[:1]))
    _, past = ar.first_logits(4, keys_values)
    _, past = ar.next_logits(CAPTIONS[:, 0], keys_values, past)
    order = torch.tensor([2, 2, 0, 1])
    logits, _ = ar.next_logits(torch.tensor([1, 2, 3, 4]), keys_values, past.select(order))
    captions = torch.stack([CAPTIONS[order, 0], torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.long)])
    expected = ar_pass(ar, captions.T, ImageFeatures(features.memory[:1], features.summary[:1]))
    torch.testing.assert_close(logits, expected[:, 2], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logits_at_some_positions_only(ar, features):
    positions = torch.tensor([0, 3, 7, 19])
    some, whole = (
        ar_pass(ar, CAPTIONS, features, positions=positions),
        ar_pass(ar, CAPTIONS, features),
    )
    torch.testing.assert_close(some, whole.flatten(0, 1)[positions])


@torch.no_grad()
def test_every_caption_sees_its_own_image(ar, features):
    swapped = ImageFeatures(features.memory.flip(0), features.summary.flip(0))
    rows = torch.tensor([2, 3, 0, 1])
    torch.testing.assert_close(
        ar_pass(ar, CAPTIONS[rows], swapped),
        ar_pass(ar, CAPTIONS, features)[rows],
    )
    assert not torch.allclose(
        ar_pass(ar, CAPTIONS, swapped),
        ar_pass(ar, CAPTIONS, features),
    )


def test_a_new_model_leaves_the_encoders_weights_alone(ar_config):
    published = build_image_encoder(ar_config.encoder).state_dict()
    ours = AutoregressiveModel(ar_config).encoder.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in published.items())


def test_model_is_as_large_as_the_denoiser_less_its_timestep(ar_config, config):
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

    assert weights(build_model(ar_config)) == weights(build_model(config))


def test_a_folder_gives_the_kind_it_holds(ar, tmp_path):
    ar.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, AutoregressiveModel)
    assert loaded.stored_state().keys() == ar.stored_state().keys()
    for name, value in ar.stored_state().items():
        assert torch.equal(loaded.stored_state()[name], value), name
    with pytest.raises(CheckpointError, match="a model of kind 'autoregressive', not 'diffusion'"):
        DDCapModel.from_pretrained(tmp_path)
