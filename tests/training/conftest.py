"""What several tests of training share."""

import pytest
import yaml


@pytest.fixture
def recipe_file(tmp_path, photos, captions_json, tiny_clip_folder):
    """A tiny but complete training on real photographs: trainable CLIP, dropout, image-free training, EMA."""
    recipe = {
        "data": {
            "root": str(photos[0].parent),
            "json": str(captions_json),
            "captions_per_image": 2,
            "views": 3,
            "workers": 0,
        },
        "encoder": {
            "kind": "clip",
            "name": str(tiny_clip_folder),
            "image_size": 32,
            "fit": "crop",
            "trainable": True,
        },
        "tokenizer": {"vocabulary_size": 120},
        "model": {"width": 16, "layers": 1, "heads": 2, "projection_hidden": 8, "length_hidden": 8},
        "training": {
            "output": str(tmp_path / "run"),
            "epochs": 4,
            "warmup_epochs": 1,
            "batch_size": 8,
            "learning_rate": 1.0e-2,
            "ema_decay": 0.5,
            "checkpoint_every": 2,
            "validate_every": 2,
            "log_every": 1,
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
