import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ddcap.recipe import load_recipe
from ddcap.training.checkpoint import list_checkpoints
from ddcap.training.loop import train
from ddcap.training.start import prepare


@pytest.fixture(params=["diffusion", "autoregressive"])
def recipe_file(request, tmp_path, captions_json, tiny_clip_folder):
    """A training on text alone; the images of the JSON are nowhere to be found."""
    text = tmp_path / "captions.txt"
    text.write_text("A brown dog jumps over a wall .\nTwo cats sleep .\nA cup stands on a table .\n" * 20)
    ar = request.param == "autoregressive"
    recipe = {
        "data": {"root": str(tmp_path), "json": str(captions_json), "text": str(text), "workers": 0},
        "encoder": {"kind": "clip", "name": str(tiny_clip_folder), "image_size": 32, "fit": "crop"},
        "tokenizer": {"vocabulary_size": 120},
        "model": {"width": 16, "layers": 1, "heads": 2, "projection_hidden": 8, "length_hidden": 8},
        "training": {
            "output": str(tmp_path / "text"),
            "epochs": 6,
            "warmup_epochs": 1,
            "batch_size": 8,
            "learning_rate": 1.0e-2,
            "log_every": 1,
            "validate_every": 3,
        },
    }
    if ar:
        off = dict.fromkeys(["length_prediction", "concentrated_attention"], False)
        recipe["model"].update(kind="autoregressive", **off)
        recipe["training"]["image_free_probability"] = 0
        recipe["decoding"] = {"method": "left_to_right", "guidance": 1}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_training_on_text_alone_continues_with_images(recipe_file, tmp_path, photos):
    recipe = load_recipe(recipe_file)
    start = {
        name: value.clone() for name, value in prepare(recipe, resume=False).model.stored_state().items()
    }
    folder = train(recipe)
    lines = [json.loads(line) for line in (tmp_path / "text" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert validations and all(line["cider"] is None for line in validations)
    learned = load_file(list_checkpoints(tmp_path / "text")[-1] / "weights.safetensors")
    untouched = (
        "memory_projection",
        "length_head",
        "decoder.blocks.0.cross_attention",
        "decoder.blocks.0.norm_cross",
    )
    for name, value in learned.items():
        assert torch.equal(value, start[name]) == name.startswith(untouched), name

    images = ["data.text=null", f"data.root={photos[0].parent}", f"training.output={tmp_path / 'images'}"]
    captioner = train(load_recipe(recipe_file, [*images, f"model.init={folder}", "training.epochs=1"]))
    assert (captioner / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
