import copy
import pickle

import pytest

from ddcap.recipe import Recipe, load_recipe
from ddcap.settings import DecodingSettings, ModelSettings, dump_settings, parse_settings


def test_a_default_that_is_given_is_told_from_one_that_is_not():
    assert ModelSettings().given == frozenset()
    assert ModelSettings(width=768).given == {"width"}
    assert ModelSettings("diffusion").given == {"kind"}
    assert ModelSettings(width=768) == ModelSettings()
    assert parse_settings(Recipe, {"model": {"width": 768, "positions": None}}, "x").model.given == {
        "width",
        "positions",
    }
    assert Recipe(model=ModelSettings(width=768)).model.given == {"width"}
    assert Recipe().model.given == frozenset()


def test_a_file_gives_what_it_and_those_it_extends_say(tmp_path):
    (tmp_path / "base.yaml").write_text("model: {width: 768}\ndecoding: {guidance: 1.17}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nmodel: {heads: 12}\n")
    recipe = load_recipe(tmp_path / "mine.yaml", ["model.layers=12"])
    assert recipe.model.given == {"width", "heads", "layers"} and recipe.decoding.given == {"guidance"}
    assert recipe.training.given == frozenset() and recipe == Recipe()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_given_survives_copying_and_pickling(again):
    """Loader processes are sent the data section."""
    settings = DecodingSettings(steps=3)
    assert again(settings) == settings and again(settings).given == {"steps"}


def test_given_is_not_a_setting():
    settings = ModelSettings(width=768)
    assert "given" not in dump_settings(settings) and "_given" not in vars(settings)
    assert ModelSettings(**vars(settings)) == settings


@pytest.mark.parametrize("init", ["default", None])
def test_a_model_is_open_while_its_settings_come_from_another(init):
    assert ModelSettings(init=init).is_open == (init is not None)
    assert not ModelSettings(**{**vars(ModelSettings()), "init": init}).is_open
