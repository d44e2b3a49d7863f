import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from whole_pass import diffusion_pass

from ddcap.decoding.generate import generate
from ddcap.errors import CheckpointError
from ddcap.model.config import CONFIG_NAME, ENCODER_NAME, WEIGHTS_NAME, ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings, DiffusionSettings, ModelSettings

MASK = 23
TOKENS = torch.tensor(
    [[3, MASK, 5, 1, 0, 0], [MASK, 7, 8, 9, MASK, 1], [2, 2, MASK, 4, 1, 0], [6, MASK, 1, 0, 0, 0]]
)
LENGTHS = torch.tensor([4, 6, 5, 3])
TIMESTEP = torch.tensor([0, 7, 3, 5])


def run(model, features, **arguments):
    with torch.no_grad():
        return diffusion_pass(model, TOKENS, TIMESTEP, LENGTHS, features, **arguments)


def test_output_shapes(model, features):
    output = run(model, features)
    assert output.logits.shape == (4, 6, 23)
    assert output.length_logits.shape == (2, 9)
    assert model.mask_id == MASK
    assert model.device == torch.device("cpu")


def test_captions_follow_their_image(model, features):
    logits = run(model, features).logits
    swapped = run(model, ImageFeatures(features.memory.flip(0), features.summary.flip(0))).logits
    assert ((logits - swapped).abs().amax(dim=2) > 1e-3).all()


def test_asked_positions_are_those_of_all(model, features):
    everything = run(model, features)
    positions = torch.tensor([0, 7, 8, 3, 23])
    some = run(model, features, positions=positions)
    torch.testing.assert_close(some.logits, everything.logits.flatten(0, 1)[positions])
    assert torch.equal(some.length_logits, everything.length_logits)


@pytest.mark.parametrize("asked", [[[0, 1, 2]] * 4, [[5, 0, 2], [4, 4, 1], [3, 0, 5], [2, 2, 2]], [[1]] * 4])
def test_states_of_some_positions_are_those_among_all(model, features, asked):
    """Positions in any order, repeated ones and padding too; the last block leaves the others out."""
    asked, sizes = torch.tensor(asked), []
    mlp = model.denoiser.blocks[-1].mlp
    hook = mlp.register_forward_hook(lambda _, given, __: sizes.append(given[0].shape[1]))
    with torch.no_grad():
        arguments = (TOKENS, TIMESTEP, LENGTHS, model.project_memory(features))
        everywhere, some = model(*arguments), model(*arguments, asked=asked)
    hook.remove()
    torch.testing.assert_close(some, everywhere[torch.arange(4).unsqueeze(1), asked])
    assert sizes == [TOKENS.shape[1], asked.shape[1]]


def test_padding_is_not_read(model, features):
    other = torch.where(torch.arange(6) < LENGTHS.unsqueeze(1), TOKENS, 17)
    real = torch.arange(6) < LENGTHS.unsqueeze(1)
    with torch.no_grad():
        found = diffusion_pass(model, other, TIMESTEP, LENGTHS, features).logits
    torch.testing.assert_close(found[real], run(model, features).logits[real])


def test_concentrated_attention_is_a_setting(model, config, features):
    settings = ModelSettings(**{**vars(config.model), "concentrated_attention": False})
    changed = ModelConfig(23, config.encoder, settings, config.diffusion, config.decoding)
    dense = DDCapModel(changed, model.encoder)
    dense.load_stored_state(model.stored_state())
    assert not torch.allclose(run(dense.eval(), features).logits, run(model, features).logits, atol=1e-3)


@pytest.mark.parametrize("padding", ["noised", "known"])
def test_words_may_attend_to_padding(model, config, features, padding):
    """Noised padding is read as it is given, known padding is the same whatever is given."""
    settings = {**vars(config.model), "concentrated_attention": False}
    hidden, seen = (
        DDCapModel(
            ModelConfig(
                23,
                config.encoder,
                ModelSettings(**{**settings, "padding": one}),
                config.diffusion,
                config.decoding,
            ),
            model.encoder,
        ).eval()
        for one in ("hidden", padding)
    )
    for one in (hidden, seen):
        one.load_stored_state(model.stored_state())
    real = torch.arange(6) < LENGTHS.unsqueeze(1)
    assert not real.all()
    assert not torch.allclose(run(seen, features).logits[real], run(hidden, features).logits[real], atol=1e-4)
    with torch.no_grad():
        other = torch.where(real, TOKENS, 17)
        found = diffusion_pass(seen, other, TIMESTEP, LENGTHS, features).logits
    is_same = torch.allclose(found[real], run(seen, features).logits[real], atol=1e-6)
    assert is_same == (padding == "known")


def test_padding_that_is_seen_decodes_alike_in_any_batch(model, config, features):
    settings = ModelSettings(**{**vars(config.model), "concentrated_attention": False, "padding": "noised"})
    seen = DDCapModel(
        ModelConfig(23, config.encoder, settings, config.diffusion, config.decoding), model.encoder
    )
    seen.load_stored_state(model.stored_state())
    decoding = DecodingSettings(length=4, guidance=1)
    both = generate(seen.eval(), features, decoding, end_id=1, captions_per_image=2)
    first = ImageFeatures(features.memory[:1], features.summary[:1])
    alone = generate(seen, first, decoding, end_id=1)
    assert torch.equal(torch.as_tensor(both.tokens[:1]), torch.as_tensor(alone.tokens))
    longest = seen.config.model.max_length
    assert seen.extended(torch.zeros(1, 4, dtype=torch.long), torch.tensor([3]), seen.mask_id).tolist() == [
        [0, 0, 0] + [seen.mask_id] * (longest - 3)
    ]


def test_image_free_is_the_learned_memory(model, features):
    keep, drop = torch.tensor([True, False]), torch.tensor([False, True])
    with_image = run(model, features).logits
    torch.testing.assert_close(run(model, features, use_image=keep).logits[:2], with_image[:2])
    torch.testing.assert_close(run(model, features, use_image=drop).logits[2:], with_image[2:])

    learned = model.image_free_keys_values().expand(2)
    with torch.no_grad():
        expected = model.denoiser.logits(model(TOKENS, TIMESTEP, LENGTHS, learned))
    neither = run(model, features, use_image=torch.tensor([False, False])).logits
    torch.testing.assert_close(neither, expected)
    torch.testing.assert_close(run(model, features, use_image=keep).logits[2:], expected[2:])
    assert not torch.allclose(neither, with_image, atol=1e-3)


def test_a_dropped_image_gets_no_gradient(trainable_model, features):
    memory = features.memory.clone().requires_grad_()
    output = diffusion_pass(
        trainable_model,
        TOKENS,
        TIMESTEP,
        LENGTHS,
        ImageFeatures(memory, features.summary),
        use_image=torch.tensor([True, False]),
    )
    output.logits.square().sum().backward()
    assert memory.grad[0].abs().sum() > 0
    assert memory.grad[1].abs().sum() == 0
    assert trainable_model.image_free_memory.grad.abs().sum() > 0


def test_length_loss_does_not_reach_the_encoder(trainable_model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = trainable_model.encoder(pixels)
    assert features.summary.requires_grad
    cross_entropy(trainable_model.length_logits(features), torch.tensor([3, 4])).backward()
    assert trainable_model.length_head.mlp[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in trainable_model.encoder.parameters())


def test_token_loss_reaches_the_encoder(trainable_model):
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    output = diffusion_pass(trainable_model, TOKENS, TIMESTEP, LENGTHS, trainable_model.encoder(pixels))
    output.logits.square().sum().backward()
    patches = trainable_model.encoder.network.vision_model.embeddings.patch_embedding
    assert patches.weight.grad.abs().sum() > 0


def test_without_length_prediction(config, model, features):
    settings = ModelSettings(**{**vars(config.model), "length_prediction": False})
    changed = ModelConfig(23, config.encoder, settings, config.diffusion, config.decoding)
    plain = DDCapModel(changed, model.encoder)
    assert run(plain.eval(), features).length_logits is None
    assert not any(name.startswith("length_head") for name in plain.stored_state())


def test_schedule_is_that_of_the_settings(model):
    assert model.schedule.steps == 8
    assert model.schedule.vocabulary_size == 23
    assert model.schedule.cumulative_mask[7] == 0.9


# storing


def test_model_survives_saving_and_loading(model, config, features, tmp_path):
    model.save_pretrained(tmp_path / "new" / "folder")
    loaded = DDCapModel.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.config == config
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    assert torch.equal(run(loaded, features).logits, run(model, features).logits)


def test_every_stored_weight_is_read_back(model, tmp_path):
    model.save_pretrained(tmp_path)
    changed = {name: value + 1 for name, value in load_file(tmp_path / WEIGHTS_NAME).items()}
    save_file(changed, tmp_path / WEIGHTS_NAME)
    loaded = DDCapModel.from_pretrained(tmp_path).stored_state()
    for name, value in model.stored_state().items():
        assert torch.equal(loaded[name], value + 1), name


def test_frozen_encoder_stays_out_of_the_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / WEIGHTS_NAME).keys()
    assert names
    assert not [name for name in names if name.startswith("encoder.")]
    left_out = {name for name in model.state_dict() if name.startswith("encoder.")}
    assert names | left_out == model.state_dict().keys()


def test_trained_encoder_is_in_the_file(trainable_model, tmp_path):
    trainable_model.save_pretrained(tmp_path)
    assert load_file(tmp_path / WEIGHTS_NAME).keys() == trainable_model.state_dict().keys()
    loaded = DDCapModel.from_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.encoder(pixels).memory, trainable_model.encoder(pixels).memory)
    state = loaded.state_dict()
    for name, value in trainable_model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_trained_encoder_needs_no_published_weights(trainable_config, tiny_clip_folder, tmp_path):
    clip = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    encoder = dataclasses.replace(trainable_config.encoder, name=str(clip))
    model = DDCapModel(dataclasses.replace(trainable_config, encoder=encoder)).eval()
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(clip)
    loaded = DDCapModel.from_pretrained(tmp_path / "model")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.encoder(pixels).memory, model.encoder(pixels).memory)
    for damage in ("{", "[1]"):
        (tmp_path / "model" / ENCODER_NAME).write_text(damage)
        with pytest.raises(CheckpointError, match=r"encoder\.json: damaged"):
            DDCapModel.from_pretrained(tmp_path / "model")


def test_half_precision_file(model, tmp_path):
    model.save_pretrained(tmp_path, dtype=torch.float16)
    assert {value.dtype for value in load_file(tmp_path / WEIGHTS_NAME).values()} == {torch.float16}
    loaded = DDCapModel.from_pretrained(tmp_path).stored_state()
    for name, value in model.stored_state().items():
        assert torch.equal(loaded[name], value.half().float()), name


def refused(folder, match):
    with pytest.raises(CheckpointError, match=match) as error:
        DDCapModel.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_missing_file_is_named(model, tmp_path, name):
    model.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    refused(tmp_path, name)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(model, tmp_path, name, kept):
    model.save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    refused(tmp_path, name)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_of_another_kind_is_refused(model, tmp_path, name):
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\xff\xd8\xff\xe0 a photograph" * 9)
    refused(tmp_path, name)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": "other"}, "ddcap-1"),
        ({"vocabulary_size": "23"}, "vocabulary_size"),
        ({"vocabulary_size": -1}, "vocabulary_size"),
        ({"diffusion": None}, "diffusion"),
        ({"model": {"widht": 16}}, "width"),
        ({"model": {"width": "wide"}}, "width"),
        ({"vocabulary_size": 24}, "does not fit"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(model, tmp_path, change, match):
    model.save_pretrained(tmp_path)
    change_config(tmp_path, change)
    refused(tmp_path, match)


def change_config(folder, change):
    """Change whole sections, or single settings of them by `section.key`."""
    values = json.loads((folder / CONFIG_NAME).read_text())
    for name, value in change.items():
        section, _, key = name.partition(".")
        if key:
            values[section][key] = value
        else:
            values[section] = value
    (folder / CONFIG_NAME).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vocabulary_size": 10**12}, r"misshapen .*10{12}"),
        ({"model.width": 2 * 10**6}, "misshapen"),
        ({"model.width": 10**12}, "does not fit"),
        ({"model.width": 10**30}, "does not fit"),
        ({"model.layers": 10**9}, "10{9} layers for"),
        ({"model.positions": 10**12}, "misshapen"),
        ({"model.max_length": 10**12, "model.positions": None}, "misshapen"),
        ({"model.projection_hidden": 10**12}, "misshapen"),
        ({"model.length_hidden": 10**12}, "misshapen"),
        ({"model.length_difference": True, "model.concentrated_attention": True}, "missing"),
        ({"diffusion.steps": 10**12}, "steps=10{12}"),
        ({"decoding.candidates": 10**9}, "candidates=10{9}"),
        ({"encoder.image_size": 10**9}, "image_size=10{9}"),
    ],
)
def test_sizes_of_a_config_are_compared_before_anything_is_built_or_downloaded(
    model, tmp_path, change, match
):
    """The sizes could not be allocated, and there is no such encoder; both go unnoticed."""
    model.save_pretrained(tmp_path)
    change_config(tmp_path, {"encoder.name": str(tmp_path / "nowhere"), **change})
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": 10**12}, "does not fit"),
        ({"intermediate_size": 10**12}, "misshapen"),
        ({"num_hidden_layers": 10**9}, "10{9} layers for"),
        ({"num_hidden_layers": "many"}, "these settings make no model"),
        ({"patch_size": 0}, "these settings make no model"),
        ({"num_channels": 10**9}, "misshapen"),
        ({"hidden_act": "none of these"}, "these settings make no model"),
    ],
)
def test_sizes_of_a_trained_encoder_are_compared_too(trainable_model, tmp_path, change, match):
    trainable_model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / ENCODER_NAME).read_text())
    (tmp_path / ENCODER_NAME).write_text(json.dumps({**values, **change}))
    refused(tmp_path, match)


def test_of_a_trained_encoder_only_the_architecture_is_read(trainable_model, tmp_path):
    """Other keys may make transformers download code."""
    trainable_model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / ENCODER_NAME).read_text())
    others = {"attn_implementation": "somebody/kernels", "auto_map": {"AutoModel": "somebody/code--a.B"}}
    (tmp_path / ENCODER_NAME).write_text(json.dumps({**values, **others}))
    shape = DDCapModel.from_pretrained(tmp_path).encoder.network.config
    assert not hasattr(shape, "auto_map") and "somebody" not in str(shape._attn_implementation)


def test_a_published_encoder_of_another_size_is_refused_before_its_weights_are_read(
    model, tiny_clip_folder, tmp_path
):
    clip = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    values = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**values, "hidden_size": 2 * 10**6}))
    (clip / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "model")
    change_config(tmp_path / "model", {"encoder.name": str(clip)})
    refused(tmp_path / "model", "its encoder gives a memory width of 2000000, the weights expect 32")


def test_a_deeply_nested_config_is_one_line(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text("[" * 100_000)
    refused(tmp_path, "not valid JSON")


@pytest.mark.parametrize("section", ["encoder", "model", "diffusion", "decoding"])
def test_a_config_without_a_section_is_refused(model, tmp_path, section):
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / CONFIG_NAME).read_text())
    del values[section]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(values))
    refused(tmp_path, section)


def test_a_config_that_is_a_list_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / CONFIG_NAME).write_text("[1, 2]")
    refused(tmp_path, "ddcap-1")


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_are_refused(model, tmp_path, change):
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / WEIGHTS_NAME)
    if change == "missing":
        del state["denoiser.mask_embedding"]
    elif change == "unexpected":
        state["denoiser.other"] = torch.zeros(3)
    else:
        state["denoiser.mask_embedding"] = torch.zeros(3)
    save_file(state, tmp_path / WEIGHTS_NAME)
    refused(tmp_path, change)


def test_config_survives_saving_and_loading(config):
    settings = ModelSettings(width=4, heads=2)
    changed = ModelConfig(7, config.encoder, settings, DiffusionSettings(steps=3), DecodingSettings(length=2))
    plain = json.loads(json.dumps(changed.to_dict()))
    assert ModelConfig.from_dict(plain, "here") == changed


def test_length_difference_tells_a_position_how_many_tokens_follow(config, perturbed, features):
    settings = dataclasses.replace(config.model, length_difference=True, concentrated_attention=True)
    told = perturbed(DDCapModel, dataclasses.replace(config, model=settings)).eval()
    blind = perturbed(DDCapModel, config).eval()
    tokens = torch.full((2, 8), config.vocabulary_size)  # all MASK: nobody attends to anybody
    timestep = torch.tensor([7, 7])
    with torch.no_grad():
        for model, differs in ((told, True), (blind, False)):
            short, long = (
                diffusion_pass(model, tokens, timestep, torch.tensor([length] * 2), features).logits[:, :4]
                for length in (4, 8)
            )
            assert torch.allclose(short, long) != differs
        # no position of four has more than three tokens behind it
        weight = told.denoiser.difference_embedding.weight.clone()
        told.denoiser.difference_embedding.weight[4:] = 100.0
        again = diffusion_pass(told, tokens, timestep, torch.tensor([4, 4]), features).logits[:, :4]
        told.denoiser.difference_embedding.weight.copy_(weight)
        before = diffusion_pass(told, tokens, timestep, torch.tensor([4, 4]), features).logits[:, :4]
    torch.testing.assert_close(again, before)
