from pathlib import Path

import pytest
import yaml

from ddcap.errors import RecipeError
from experiments.plan import load_plan
from experiments.table1 import claims_of, designs

SHIPPED = Path(__file__).parents[2] / "recipes" / "ablation" / "plan.yaml"
TABLE_1 = {  # the paper's crosses: best-first, concentrated attention mask, length prediction, image-free
    "a": (0, 0, 0, 0),
    "b": (0, 1, 0, 0),
    "c": (1, 0, 0, 0),
    "d": (1, 0, 1, 0),
    "e": (1, 1, 0, 0),
    "f": (1, 1, 1, 0),
    "g": (1, 1, 1, 1),
}


def folder_of(plan, name, seed=0):
    return next(Path(one.recipe.training.output).name for one in plan.named(name) if one.seed == seed)


def test_the_shipped_rows_have_the_papers_designs():
    plan = load_plan(SHIPPED, "out")
    assert [one.name for one in plan.rows if one.seed == 0] == [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "twin",
    ]
    for name, crosses in TABLE_1.items():
        assert tuple(designs(plan.named(name)[0].recipe).values()) == crosses, name
    for name in ("f", "g", "twin"):
        assert len(plan.named(name)) >= 2


def test_rows_that_differ_in_decoding_share_a_training():
    plan = load_plan(SHIPPED, "out")
    assert {folder_of(plan, name) for name in "acd"} == {"d-seed0"}
    assert {folder_of(plan, name) for name in "bef"} == {"f-seed0"}
    assert folder_of(plan, "f", 1) == "f-seed1"
    assert folder_of(plan, "g") == "g-seed0"
    assert folder_of(plan, "twin") == "twin-seed0"


def test_the_old_name_twin_yaml_works_in_plans(plan_file, caplog):
    renamed = load_plan(plan_file, "out").named("twin")
    assert [one.recipe.model.kind for one in renamed] == ["autoregressive"]
    (plan_file.parent / "autoregressive.yaml").rename(plan_file.parent / "twin.yaml")
    assert load_plan(plan_file, "out").named("twin") == renamed
    assert not caplog.records


def test_rows_differ_in_nothing_but_their_designs():
    plan = load_plan(SHIPPED, "out")
    first = plan.rows[0].recipe
    for one in plan.rows:
        assert one.recipe.data == first.data
        assert one.recipe.encoder == first.encoder
        assert one.recipe.tokenizer == first.tokenizer
        for name in ("width", "layers", "heads", "dropout", "max_length"):
            assert getattr(one.recipe.model, name) == getattr(first.model, name)
        for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "ema_decay"):
            assert getattr(one.recipe.training, name) == getattr(first.training, name)


def test_a_training_sweep_changes_one_setting():
    plan = load_plan(SHIPPED, "out")
    masses = [1 - one.recipe.diffusion.mask_end for one in plan.sweeps["replacement_mass"]]
    assert masses == pytest.approx([0, 0.2], abs=1e-4)


def test_a_plans_claims_stand_beside_the_papers(plan_file):
    claims = claims_of(load_plan(plan_file, "out"))
    assert [claim[:2] for claim in claims[-3:]] == [("g", "twin_beams"), ("d", "a"), ("twin_beams", "twin")]
    values = yaml.safe_load(plan_file.read_text())
    again = plan_file.with_name("again.yaml")
    again.write_text(yaml.safe_dump({**values, "claims": [["g", "f", "in our words"]]}))
    named = {claim[:2]: claim[2] for claim in claims_of(load_plan(again, "out"))}
    assert named["g", "f"] == "in our words" and len(named) == len(claims) - 2


def test_overrides_reach_every_recipe():
    plan = load_plan(SHIPPED, "out", ["training.epochs=1", "data.root=x"])
    everything = [*plan.rows, *(one for trials in plan.sweeps.values() for one in trials)]
    assert {one.recipe.training.epochs for one in everything} == {1}
    assert {one.recipe.data.root for one in everything} == {"x"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": {"f": []}}, "at least one seed"),
        ({"rows": {"g": [0], "nothing": [0]}}, "no such recipe"),
        ({"colour": 3}, "unknown setting 'colour'"),
        ({"decoding_sweeps": {"guidance": [1]}, "rows": {"f": [0]}}, "vary row g"),
        ({"claims": [["g", "twin_beam", "x"]]}, "names row 'twin_beam'; use a, d, f, g, twin, twin_beams"),
        ({"claims": [["g", "g", "x"]]}, "compares a row with itself"),
        ({"claims": [["g", "f"]]}, "claims"),
        ({"training_sweeps": {"x": {"row": "q", "points": {}}}}, "starts from row 'q'"),
    ],
)
def test_a_wrong_plan_is_one_line(plan_file, changes, reason):
    values = yaml.safe_load(plan_file.read_text())
    wrong = plan_file.parent / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({**values, **changes}))
    with pytest.raises(RecipeError, match=reason) as caught:
        load_plan(wrong, "out")
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_plan(plan_file.parent / "none.yaml", "out")
