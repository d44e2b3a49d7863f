import pickle
from pathlib import Path

import pytest
import torch
from whole_pass import diffusion_pass

from ddcap.errors import CheckpointError, DDCapError
from ddcap.model.config import ModelConfig
from ddcap.model.convert import convert
from ddcap.model.ddcap import DDCapModel
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings

WIDTH, LAYERS, HEADS, POSITIONS, LONGEST = 16, 2, 2, 25, 9


@pytest.fixture(scope="module")
def tokenizer_folder(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def ours(tiny_tokenizer, clip_settings, perturbed):
    """A random model with everything the release has."""
    settings = ModelSettings(
        width=WIDTH,
        layers=LAYERS,
        heads=HEADS,
        max_length=LONGEST,
        positions=POSITIONS,
        projection_hidden=10,
        length_hidden=12,
    )
    config = ModelConfig(
        tiny_tokenizer.vocabulary_size, clip_settings, settings, DiffusionSettings(), DecodingSettings()
    )
    return perturbed(DDCapModel, config)


@pytest.fixture
def released(ours):
    """The same weights in the layout of the authors' checkpoint."""
    denoiser = ours.denoiser
    stack = "gpt.transformer."
    state = {
        stack + "wte.weight": denoiser.token_embedding.weight,
        stack + "wpe.weight": denoiser.position_embedding.weight,
        stack + "ln_f.weight": denoiser.final_norm.weight,
        stack + "ln_f.bias": denoiser.final_norm.bias,
        "gpt.lm_head.weight": denoiser.token_embedding.weight,
        "mask_embed": denoiser.mask_embedding.view(1, 1, WIDTH),
        "prefix_free": ours.image_free_memory.unsqueeze(0),
        "clip_model.conv1.weight": torch.zeros(3, 3),
    }
    for number, block in enumerate(denoiser.blocks):
        start = f"{stack}h.{number}."
        for theirs, linear in {
            "attn.c_attn": block.self_attention.query_key_value,
            "attn.c_proj": block.self_attention.output,
            "crossattention.q_attn": block.cross_attention.query,
            "crossattention.c_attn": block.cross_attention.key_value,
            "crossattention.c_proj": block.cross_attention.output,
            "mlp.c_fc": block.mlp[0],
            "mlp.c_proj": block.mlp[2],
        }.items():
            state[f"{start}{theirs}.weight"] = linear.weight.T  # Conv1D
            state[f"{start}{theirs}.bias"] = linear.bias
        for theirs, norm in {
            "ln_1": block.norm_self,
            "ln_cross_attn": block.norm_cross,
            "ln_2": block.norm_mlp,
        }.items():
            state[f"{start}{theirs}.linear.weight"] = norm.linear.weight
            state[f"{start}{theirs}.linear.bias"] = norm.linear.bias
        state[start + "attn.bias"] = torch.ones(1, 1, 4, 4)
        state[start + "attn.masked_bias"] = torch.tensor(-1e4)
    for theirs, mlp in {"clip_project": ours.memory_projection, "len_head": ours.length_head.mlp}.items():
        for layer in (0, 2):
            state[f"{theirs}.model.{layer}.weight"] = mlp[layer].weight
            state[f"{theirs}.model.{layer}.bias"] = mlp[layer].bias
    return {name: value.detach().clone() for name, value in state.items()}


@pytest.fixture
def convert_state(tmp_path, tiny_clip_folder, tokenizer_folder):
    def convert_state(state, **changes):
        torch.save(state, tmp_path / "released.pt")
        arguments = {"encoder": str(tiny_clip_folder), "tokenizer": str(tokenizer_folder), "heads": HEADS}
        return convert(tmp_path / "released.pt", tmp_path / "out", **{**arguments, **changes})

    return convert_state


def outputs(model, features):
    tokens = torch.tensor([[1, model.mask_id, 2, 3], [model.mask_id, 5, 6, 0]])
    with torch.no_grad():
        output = diffusion_pass(model, tokens, torch.tensor([19, 4]), torch.tensor([4, 3]), features)
        no_image = torch.zeros(2, dtype=torch.bool)
        free = diffusion_pass(
            model, tokens, torch.tensor([19, 4]), torch.tensor([4, 3]), features, use_image=no_image
        )
    return torch.cat([output.logits.flatten(), output.length_logits.flatten(), free.logits.flatten()])


def assert_same(model, ours, features):
    assert not model.training
    torch.testing.assert_close(outputs(model, features), outputs(ours, features))


def test_converted_model_computes_the_same(released, ours, features, convert_state, tmp_path):
    converted = convert_state(released)
    assert_same(converted, ours, features)
    assert converted.config.model == ours.config.model
    assert converted.config.diffusion == DiffusionSettings()
    assert_same(DDCapModel.from_pretrained(tmp_path / "out"), ours, features)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_data_parallel_prefix_and_wrapping(released, ours, features, convert_state):
    prefixed = {f"module.{name}": value for name, value in released.items()}
    assert_same(convert_state({"model": prefixed, "epoch": 30}), ours, features)


def test_a_state_without_length_head_is_converted(released, convert_state):
    state = {name: value for name, value in released.items() if not name.startswith("len_head")}
    converted = convert_state(state)
    assert converted.length_head is None
    assert converted.config.model.max_length == 20


def refused(call, match):
    with pytest.raises(DDCapError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gpt.transformer.wte.weight", "wte"),
        ("gpt.transformer.wpe.weight", "position_embedding"),
        ("gpt.transformer.h.1.mlp.c_fc.weight", "blocks.1.mlp.0"),
        ("clip_project.model.0.weight", "memory_projection"),
        ("len_head.model.0.weight", "length_head"),
        ("mask_embed", "mask_embedding"),
        ("prefix_free", "image-free"),
    ],
)
def test_a_missing_weight_is_named(released, convert_state, name, match):
    del released[name]
    refused(lambda: convert_state(released), match)


def test_a_state_without_blocks_is_refused(released, convert_state):
    state = {name: value for name, value in released.items() if ".h." not in name}
    refused(lambda: convert_state(state), "blocks")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpt.transformer.h.0.attn.c_new.weight", torch.zeros(2, 2)),
        ("something.else", torch.zeros(2, 3)),
        ("second_mask_embed", torch.zeros(WIDTH)),
    ],
)
def test_an_unknown_weight_is_named(released, convert_state, name, value):
    refused(lambda: convert_state({**released, name: value}), name)


def test_a_state_of_another_model_is_refused(convert_state):
    refused(lambda: convert_state({"layer.weight": torch.zeros(2)}), "not a checkpoint of the release")
    refused(lambda: convert_state([1, 2]), "contains no named weights")
    refused(lambda: convert_state({"epoch": 3}), "contains no named weights")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_pickled_code_is_refused_and_not_run(tmp_path, convert_state):
    bomb = Bomb()
    bomb.target = str(tmp_path / "exploded")
    refused(lambda: convert_state({"gpt.transformer.wte.weight": bomb}), "more than weights")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb is live
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(released, tmp_path, tiny_clip_folder, tokenizer_folder, kept):
    path = tmp_path / "cut.pt"
    torch.save(released, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    folders = {"encoder": str(tiny_clip_folder), "tokenizer": str(tokenizer_folder)}
    refused(lambda: convert(path, tmp_path / "out", heads=HEADS, **folders), "cut.pt")
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(tmp_path, tiny_clip_folder):
    missing = tmp_path / "no.pt"
    refused(lambda: convert(missing, tmp_path / "out", encoder=str(tiny_clip_folder)), "no such file")


def test_a_missing_encoder_is_named(released, convert_state, tmp_path):
    refused(lambda: convert_state(released, encoder=str(tmp_path / "nowhere")), "nowhere")


def test_an_encoder_of_another_shape_is_refused(released, convert_state, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=16,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "other")
    refused(lambda: convert_state(released, encoder=str(tmp_path / "other")), "encoder")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_size_is_refused(released, convert_state):
    released["gpt.transformer.wte.weight"] = torch.zeros(99, WIDTH)
    refused(lambda: convert_state(released), "99 entries")


def test_heads_that_do_not_divide_the_width_are_refused(released, convert_state):
    refused(lambda: convert_state(released, heads=3), "heads=3")


def test_checkpoint_error_is_the_kind_users_see():
    with pytest.raises(CheckpointError):
        convert("/nowhere.pt", "/nowhere", encoder="/nowhere")


def test_encoder_settings_follow_the_folder(released, convert_state, tiny_clip_folder):
    encoder = convert_state(released).config.encoder
    assert encoder == EncoderSettings(kind="clip", name=str(tiny_clip_folder), image_size=32, fit="crop")
