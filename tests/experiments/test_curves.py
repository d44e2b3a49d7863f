from pathlib import Path

import pytest

from ddcap.errors import RecipeError
from experiments.charts import draw_charts
from experiments.markdown import to_markdown
from experiments.plan import load_plan
from experiments.run import load_ablation


def test_every_row_has_its_curve_and_its_best_model(finished):
    content = load_ablation(finished[0])["curves"]["0.5"]
    assert set(content["rows"]) == {"g", "twin", "twin_beams"}
    for name in ("g", "twin"):
        points = content["rows"][name]["0"]["points"]
        assert [point["epoch"] for point in points] == [2, 4]
        assert all(point["loss"] > 0 for point in points)
    for other in ("twin", "twin_beams"):
        lead = content["differences"][other]
        scores = [content["rows"][name]["0"]["CIDEr"] for name in ("g", other)]
        assert lead["difference"] == pytest.approx(scores[0] - scores[1], abs=1e-3)
        assert lead["p"] is None and lead["verdict"] == "not settled"  # one seed
        assert lead["interval_95"][0] <= lead["difference"] <= lead["interval_95"][1]


def test_a_share_is_trained_on_fewer_images(plan_file):
    plan = load_plan(plan_file, "out")
    assert [one.name for one in plan.curves["0.5"]] == ["g-0.5", "twin-0.5"]
    assert {one.recipe.data.train_share for one in plan.curves["0.5"]} == {0.5}


def test_tables_and_chart_show_the_curves(finished):
    results = load_ablation(finished[0])
    text = to_markdown(results)
    assert "| 50% of the images, epochs | 2 | 4 |" in text
    assert "g is ahead by" in text
    assert len(draw_charts(results)["curves"].axes) == 2


def test_a_plan_may_hold_curves_alone(plan_file, tmp_path):
    only = plan_file.with_name("curves.yaml")
    only.write_text("curves: {rows: {g: [0]}, shares: {'0.5': []}}\n")
    assert [one.label for one in load_plan(only, tmp_path).trials] == ["g-0.5-seed0"]
    only.write_text("curves: {rows: {g: []}, shares: {'0.5': []}}\n")
    with pytest.raises(RecipeError, match="at least one seed"):
        load_plan(only, tmp_path)


def test_the_shipped_comparisons_differ_in_what_they_compare():
    folder = Path(__file__).parents[2] / "recipes" / "comparison"
    for trials in load_plan(folder / "plan.yaml", "out").curves.values():
        assert (
            len({(one.recipe.data, one.recipe.model.width, one.recipe.training.epochs) for one in trials})
            == 1
        )
    rows = {one.name: one.recipe for one in load_plan(folder / "plan.yaml", "out").rows}
    paddings = {name: recipe.model.padding for name, recipe in rows.items() if name.startswith("d")}
    assert paddings == {"d": "hidden", "d_noised": "noised", "d_known": "known"}
    assert rows["f"].model.concentrated_attention and not rows["d"].model.concentrated_attention
    assert len({(recipe.data, recipe.training.epochs, recipe.model.width) for recipe in rows.values()}) == 1
