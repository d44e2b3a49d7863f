"""Training with `model.self_conditioning`: what is told, to whom, and what the gradient reaches."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from ddcap.captioner import Captioner
from ddcap.data.batches import collate
from ddcap.data.images import load_image
from ddcap.errors import DDCapError, RecipeError
from ddcap.model.ddcap import DDCapModel
from ddcap.model.onnx_export import check_exportable
from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train
from ddcap.training.loss import batch_features, caption_loss, draw_noise, first_guess

ON = "model.self_conditioning=true"
ROWS = [[3, 5, 7, 1], [3, 8, 1], [4, 6, 9, 2, 1], [4, 1]]  # two of each image


@pytest.fixture
def both(tiny_model_folder):
    """A model in training mode without self-conditioning, and the same one with it, as it starts."""
    plain = DDCapModel.from_pretrained(tiny_model_folder).train()
    settings = dataclasses.replace(plain.config.model, self_conditioning=True, dropout=0.0)
    config = dataclasses.replace(plain.config, model=settings)
    told = DDCapModel(config, plain.encoder)
    own = plain.stored_state()
    start = {name: value for name, value in told.stored_state().items() if name not in own}
    assert [value.abs().max() for value in start.values()] == [0]
    told.load_stored_state({**own, **start})
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
    return plain, told.train()


@pytest.fixture
def batch(both, photos):
    encoder = both[0].encoder
    pixels = torch.stack([torch.from_numpy(encoder.preprocessing(load_image(one))) for one in photos[:2]])
    with torch.no_grad():
        found = encoder(pixels)
    return collate(
        ROWS, ["one", "two"], padding_id=0, features=[*zip(found.memory, found.summary, strict=True)]
    )


def noise_for(model, seed=0):
    return draw_noise(
        torch.Generator().manual_seed(seed),
        model.schedule,
        images=2,
        captions_per_image=2,
        length=model.config.model.max_length,
        self_conditioning=model.config.model.self_conditioning,
    )


def test_other_numbers_are_drawn_as_without(both):
    plain, told = (vars(noise_for(model)) for model in both)
    assert plain.pop("use_self_cond") is None
    assert told.pop("use_self_cond").shape == (2, 2)
    assert plain.pop("is_read") is None and told.pop("is_read") is None  # there is no judge
    assert all(torch.equal(plain[name], told[name]) for name in plain)


def test_self_conditioning_starts_as_no_change_and_gets_a_gradient(both, batch):
    told = both[1]
    losses = [caption_loss(model, batch, batch_features(model, batch), noise_for(model)) for model in both]
    assert float(losses[0].token) == float(losses[1].token)
    losses[1].token.backward()
    assert told.denoiser.guess_projection.grad.abs().max() > 0


def test_half_the_captions_see_the_likeliest_words(both, batch):
    _, told = both
    timestep = torch.tensor([19, 19, 10, 19])
    noised = torch.full_like(batch.tokens, told.mask_id)
    keys_values = told.keys_values(batch_features(told, batch))
    use_self_cond = torch.tensor([True, False, False, True])
    guess = first_guess(told, batch, noised, timestep, keys_values, use_self_cond)
    expected = told.denoiser.logits(told(noised, timestep, batch.lengths, keys_values)).argmax(dim=2)
    for row, length in enumerate(batch.lengths.tolist()):
        real = guess[row, :length]
        assert torch.equal(real, expected[row, :length]) if use_self_cond[row] else (real == -1).all()
        assert (guess[row, length:] == -1).all()


def test_only_masks_see_the_previous_prediction(both, batch):
    _, told = both
    torch.nn.init.normal_(told.denoiser.guess_projection)
    keys_values = told.keys_values(batch_features(told, batch))
    timestep = torch.full((4,), 9)
    guess = torch.full_like(batch.tokens, 6)
    for noised, is_same in ((batch.tokens, True), (torch.full_like(batch.tokens, told.mask_id), False)):
        without = told(noised, timestep, batch.lengths, keys_values)
        none = told(noised, timestep, batch.lengths, keys_values, guess=torch.full_like(guess, -1))
        assert torch.equal(without, none)
        found = told(noised, timestep, batch.lengths, keys_values, guess=guess)
        assert torch.equal(without, found) == is_same


def test_in_mixed_precision_the_first_pass_takes_no_gradient_away(both, batch):
    """Autocast keeps weights that it has cast: those of a pass without gradient would have none."""
    reached = []
    for model in both:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = caption_loss(model, batch, batch_features(model, batch), noise_for(model))
        losses.token.backward()
        reached.append({name for name, one in model.named_parameters() if one.grad is not None})
        for name, one in model.denoiser.named_parameters():
            assert one.grad is None or one.grad.abs().max() > 0 or "key" in name, name
    assert reached[1] - reached[0] == {"denoiser.guess_projection"}
    assert reached[0] <= reached[1]


def weights(output):
    return load_file(list_checkpoints(output)[-1] / "weights.safetensors")


@pytest.mark.parametrize("changes", [[], ["model.padding=noised", "model.concentrated_attention=false"]])
def test_a_training_learns_captions_and_goes_on_as_if_never_stopped(recipe_file, tmp_path, photos, changes):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes = [ON, *changes, "training.mixed_precision=bf16"]
    folder = train(load_recipe(recipe_file, [*changes, f"training.output={whole}"]))
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]

    train(load_recipe(recipe_file, [*changes, f"training.output={cut}"]))
    last = list_checkpoints(cut)[-1]
    (cut / "best").rename(tmp_path / "elsewhere")
    for path in sorted(last.rglob("*"), reverse=True):
        path.unlink()
    last.rmdir()  # killed before it was written
    train(load_recipe(recipe_file, [*changes, f"training.output={cut}"]), resume=True)
    resumed, unbroken = weights(cut), weights(whole)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert unbroken["denoiser.guess_projection"].abs().max() > 0

    captioner = Captioner.from_pretrained(folder, runtime="torch")
    assert captioner.model.config.model.self_conditioning
    with pytest.raises(DDCapError, match=r"self_conditioning|padding"):
        check_exportable(captioner.model)
    together = captioner(photos[:3])
    alone = [captioner(photo)[0] for photo in photos[:3]]
    assert [one.text for one in together] == [one.text for one in alone]


def test_self_conditioning_is_refused_where_it_is_not_supported(recipe_file, both):
    with pytest.raises(DDCapError, match="self_conditioning=true: not supported by ONNX graphs"):
        check_exportable(both[1])
    ar = ["model.kind=autoregressive", "model.length_prediction=false"]
    ar += ["model.concentrated_attention=false", "decoding.method=left_to_right"]
    with pytest.raises(RecipeError, match="self_conditioning=true: needs a diffusion model"):
        load_recipe(recipe_file, [*ar, ON])
