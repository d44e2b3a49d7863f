import pytest

from ddcap.errors import RecipeError
from ddcap.recipe import load_recipe


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def message(path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_recipe_changes_single_settings_of_the_one_it_extends(write):
    write("base.yaml", "model: {width: 96, layers: 2, heads: 4}\ntraining: {epochs: 3}\n")
    write("middle.yaml", "extends: base.yaml\nmodel: {layers: 5}\n")
    recipe = load_recipe(
        write("rows/top.yaml", "extends: ../middle.yaml\nmodel: {heads: 6}\ndata: {root: x}\n")
    )
    assert (recipe.model.width, recipe.model.layers, recipe.model.heads) == (96, 5, 6)
    assert (recipe.training.epochs, recipe.data.root) == (3, "x")


def test_overrides_go_on_top_of_all(write):
    write("base.yaml", "training: {epochs: 3}\n")
    top = write("top.yaml", "extends: base.yaml\ntraining: {epochs: 4}\n")
    assert load_recipe(top).training.epochs == 4
    assert load_recipe(top, ["training.epochs=5"]).training.epochs == 5


def test_an_empty_section_takes_nothing_away(write):
    write("base.yaml", "model: {width: 96, heads: 4}\n")
    assert load_recipe(write("top.yaml", "extends: base.yaml\nmodel:\n")).model.width == 96


def test_recipes_that_extend_each_other_are_refused(write):
    write("a.yaml", "extends: b.yaml\n")
    b = write("b.yaml", "extends: a.yaml\n")
    assert "extends it in turn" in message(b)
    assert "extends it in turn" in message(write("self.yaml", "extends: self.yaml\n"))


def test_a_missing_or_wrong_base_is_one_line(write):
    assert "none.yaml: no such recipe" in message(write("top.yaml", "extends: none.yaml\n"))
    assert "not the name of one recipe file" in message(write("top.yaml", "extends: [a.yaml, b.yaml]\n"))


def test_a_wrong_section_of_the_base_is_found(write):
    write("base.yaml", "modle: {width: 96}\n")
    assert "did you mean 'model'" in message(write("top.yaml", "extends: base.yaml\n"))
