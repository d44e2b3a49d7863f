import json
import shutil
from pathlib import Path

import pytest
import yaml

from experiments.plan import load_plan

ROWS = {
    "a": "model: {concentrated_attention: false}\ndecoding: {method: ancestral, length: 20}\n",
    "d": "model: {concentrated_attention: false}\n",
    "f": "",
    "g": "training: {image_free_probability: 0.2}\ndecoding: {guidance: 1.17}\n",
    "twin": (
        "model: {kind: autoregressive, length_prediction: false, concentrated_attention: false}\n"
        "decoding: {method: left_to_right}\n"
    ),
}


@pytest.fixture(scope="session")
def photo_splits(captions_json, made_once):
    """A Karpathy JSON in which every photograph is in each split."""
    entries = json.loads(captions_json.read_text())["images"]
    images = []
    for number, split in enumerate(("train", "val", "test")):
        images += [{**entry, "split": split, "imgid": 100 * number + entry["imgid"]} for entry in entries]

    def write(folder):
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps({"images": images}))

    return made_once("splits", write) / "dataset.json"


@pytest.fixture(scope="session")
def shared_plan(small_photos, photo_splits, tiny_clip_folder, made_once):
    """A small but whole ablation of real trainings on real photographs, the same for all processes."""

    def write(folder):
        folder.mkdir()
        write_plan(folder, small_photos[0].parent, photo_splits, tiny_clip_folder)

    return made_once("plan", write) / "plan.yaml"


@pytest.fixture
def plan_file(shared_plan, tmp_path):
    """The same plan, in a folder where a test may add others."""
    folder = tmp_path / "plan"
    shutil.copytree(shared_plan.parent, folder, ignore=shutil.ignore_patterns("cache"))
    return folder / "plan.yaml"


def write_plan(folder, photos, splits, clip):
    """Write the plan with its recipes."""
    base = {
        "data": {
            "root": str(photos),
            "json": str(splits),
            "captions_per_image": 2,
            "workers": 0,
            "cache": str(folder / "cache"),
        },
        "encoder": {"kind": "clip", "name": str(clip), "image_size": 32, "fit": "crop"},
        "tokenizer": {"vocabulary_size": 120},
        "model": {"width": 32, "layers": 1, "heads": 2, "dropout": 0},
        "training": {
            "epochs": 20,
            "warmup_epochs": 1,
            "batch_size": 8,
            "learning_rate": 1.0e-2,
            "image_free_probability": 0,
            "validate_every": 20,
            "log_every": 5,
        },
        "decoding": {"guidance": 1},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    for name, changes in ROWS.items():
        recipe = "autoregressive" if name == "twin" else name
        (folder / f"{recipe}.yaml").write_text(f"extends: base.yaml\n{changes}")
    plan = {
        "rows": {"a": [0, 1], "d": [0, 1], "f": [0, 1], "g": [0], "twin": [0]},
        "beams": 2,
        "decoding_sweeps": {"guidance": [1.0, 2.0], "length": [5]},
        "training_sweeps": {
            "replacement_mass": {
                "row": "f",
                "overrides": ["training.epochs=2"],
                "points": {"0": [], "0.1": ["diffusion.mask_end=0.9"]},
            }
        },
        "infilling": {"shares": [0.25, 0.75]},
        "claims": [["d", "a", "best-first and length"], ["twin_beams", "twin", "beams help"]],
        "curves": {
            "rows": {"g": [0], "twin": [0]},
            "shares": {"0.5": ["training.epochs=4", "training.validate_at=[2]"]},
        },
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))


@pytest.fixture(scope="session")
def finished(shared_plan, made_once):
    """The folder of a finished ablation, and what it said on the way."""
    from experiments.run import ablate

    def run(folder):
        said = []
        ablate(load_plan(shared_plan, folder / "out"), folder / "out", fast=True, say=said.append)
        (folder / "said.json").write_text(json.dumps(said))

    folder = made_once("ablation", run)
    return folder / "out", json.loads((folder / "said.json").read_text())


@pytest.fixture(scope="session")
def best_folders(finished):
    """Folders of the trained row g and its twin, of the first seed."""
    return [str(finished[0] / "trainings" / f"{row}-seed0" / "best") for row in ("g", "twin")]


@pytest.fixture(scope="session")
def pair(best_folders):
    """The trained row g and its twin."""
    from experiments.analysis.run import load_pair

    return load_pair(dict(zip(("g", "twin"), map(Path, best_folders), strict=True)))


@pytest.fixture(scope="session")
def val(finished, shared_plan):
    """The images of val, with their features."""
    from experiments.split import load_split

    return load_split(load_plan(shared_plan, finished[0]).named("g")[0].recipe, "val")


@pytest.fixture(scope="session")
def analysed(best_folders, shared_plan, made_once):
    """The folder of a whole analysis of two images."""
    from experiments.analysis.run import main

    recipe = str(shared_plan.parent / "g.yaml")

    def analyse(folder):
        assert main([*best_folders, recipe, "--limit", "2", "--output", str(folder)]) == 0

    return made_once("analysis", analyse)
