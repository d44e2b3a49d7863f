import dataclasses
from pathlib import Path

import pytest
import yaml

from ddcap.errors import RecipeError
from ddcap.recipe import Recipe, load_recipe
from ddcap.settings import DecodingSettings, dump_settings, parse_settings

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").rglob("*.yaml")
    if not path.stem.startswith("plan")
)
AR = [
    "model.kind=autoregressive",
    "model.length_prediction=false",
    "model.concentrated_attention=false",
    "training.image_free_probability=0",
    "decoding.method=left_to_right",
    "decoding.guidance=1",
]
SECTIONS = [field.name for field in dataclasses.fields(Recipe)]


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def message(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, list(overrides))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_shipped_recipes_are_found():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_survive_a_round_trip(path, write):
    recipe = load_recipe(path)
    assert recipe != Recipe()
    assert load_recipe(write(yaml.safe_dump(dump_settings(recipe)))) == recipe


def test_an_empty_file_and_empty_sections_give_the_defaults(write):
    assert load_recipe(write("")) == Recipe()
    assert load_recipe(write("data:\nmodel:  # all as they are\n")) == Recipe()
    assert load_recipe(write("data:\n"), ["data.root=x"]).data.root == "x"


def test_settings_are_frozen():
    recipe = Recipe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training.epochs = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training = None


def test_an_unknown_section_gets_a_suggestion(write):
    assert message(write("traning: {epochs: 3}")).endswith(
        "unknown setting 'traning'; did you mean 'training'?"
    )


def test_an_unknown_section_without_near_miss_lists_the_known_ones(write):
    assert message(write("zzz: 3")).endswith(f"unknown setting 'zzz'; known settings: {', '.join(SECTIONS)}")


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_of_every_section_gets_a_suggestion(section, write):
    key = dataclasses.fields(getattr(Recipe(), section))[0].name
    text = message(write(f"{section}: {{{key}x: 3}}"))
    assert f"unknown setting '{section}.{key}x'; did you mean {key!r}?" in text
    assert message(write(""), [f"{section}.{key}x=3"]) == text


def test_all_mistakes_are_named_at_once(write):
    text = message(write("training: {epoch: 3, batch_size: 0}\nmodel: {width: 7}"))
    assert "training.epoch" in text and "training.batch_size=0" in text and "model.width=7" in text


def test_overrides_go_on_top_of_the_file(write):
    path = write("training: {epochs: 3, seed: 5}")
    recipe = load_recipe(path, ["training.epochs=7", "data.root=/somewhere", "training.epochs=8"])
    assert (recipe.training.epochs, recipe.training.seed, recipe.data.root) == (8, 5, "/somewhere")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.learning_rate=2e-4", 2e-4),
        ("training.learning_rate=.5", 0.5),
        ("training.epochs=2", 2.0),
        ("training.betas=[0.5, 9e-1]", (0.5, 0.9)),
        ("training.mixed_precision=no", "no"),  # YAML 1.1 would make it False
        ("training.output=2024", "2024"),
        ("training.output=2024-01-01", "2024-01-01"),
        ("training.output=1e5", "1e5"),
        ("training.output='a=b'", "a=b"),
        ("encoder.trainable=true", True),
        ("encoder.trainable=no", False),
        ("decoding.steps=5", 5),
        ("decoding.length=7", 7),
        ("decoding.steps=null", None),
        ("decoding.steps=", None),
    ],
)
def test_override_values_are_read_by_the_type_of_their_setting(override, value, write):
    section, key = override.partition("=")[0].split(".")
    read = getattr(getattr(load_recipe(write("decoding: {steps: 3}"), [override]), section), key)
    assert read == value
    assert type(read) is type(value)


def test_yaml_values_are_read_like_overrides(write):
    recipe = load_recipe(write("training: {mixed_precision: no, learning_rate: 2e-4, output: 007}"))
    assert recipe.training.mixed_precision == "no"
    assert recipe.training.learning_rate == 2e-4
    assert recipe.training.output == "007"


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.epochs", "not a setting; write section.key=value"),
        ("=3", "not a setting; write section.key=value"),
        ("data=3", "data=3: input should be a dictionary"),
        ("data.json.deeper=3", "input should be a valid string"),
        ("training.betas=[1", "not valid YAML"),
        ("epochs=3", "unknown setting 'epochs'"),
    ],
)
def test_bad_overrides_are_refused(override, reason, write):
    assert reason in message(write(""), [override])


def test_an_override_below_a_value_of_the_file(write):
    assert "'json' is a single value" in message(write("data: {json: a.json}"), ["data.json.x=1"])


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("training.epochs=many", "training.epochs=many: input should be a valid number"),
        ("training.batch_size=1.5", "training.batch_size=1.5: input should be a valid integer"),
        ("training.seed=true", "training.seed=true: input should be a valid integer"),
        ("training.epochs=inf", "training.epochs=inf: input should be a finite number"),
        ("training.learning_rate=nan", "training.learning_rate=nan"),
        ("training.betas=[0.9]", "training.betas.1"),
        ("training.betas=[0.9, 1]", "training.betas.1=1: input should be less than 1"),
        ("encoder.trainable=perhaps", "encoder.trainable=perhaps: input should be a valid boolean"),
        ("encoder.kind=clop", "encoder.kind=clop: input should be 'efficientnet_lite' or 'clip'"),
        (
            "data.captions_per_image=0",
            "data.captions_per_image=0: input should be greater than or equal to 1",
        ),
        ("model.dropout=1", "model.dropout=1: input should be less than 1"),
        ("data.root=[a]", "data.root=['a']: input should be a valid string"),
        ("data.root=null", "data.root=None: input should be a valid string"),
    ],
)
def test_wrong_types_and_values_are_named_with_their_value(override, reason, write):
    assert reason in message(write(""), [override])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model.width=100", "model.heads=3"], ["model.width=100", "model.heads=3"]),
        (["model.width=9", "model.heads=3"], ["model.width=9", "even"]),
        (["model.positions=10"], ["model.positions=10", "model.max_length=20"]),
        (["diffusion.keep_start=0.9", "diffusion.mask_start=0.2"], ["diffusion.mask_start", "1.1"]),
        (["diffusion.keep_end=0.2", "diffusion.mask_end=0.9"], ["diffusion.mask_end", "1.1"]),
        (["data.cache=x", "encoder.trainable=true"], ["data.cache", "encoder.trainable"]),
        (["decoding.length=21"], ["length=21", "model.max_length=20"]),
        (["model.kind=autoregressive"], ["autoregressive", "model.length_prediction=false"]),
        (
            [*AR, "model.length_difference=true"],
            ["autoregressive", "model.length_difference=false"],
        ),
        ([*AR, "decoding.method=best_first"], ["method=best_first", "left_to_right"]),
        ([*AR, "decoding.guidance=1.5"], ["guidance=1.5", "1.0"]),
        ([*AR, "decoding.steps=3"], ["steps=3", "None"]),
        ([*AR, "decoding.length=9"], ["length=9", "exact_length=true"]),
        (["decoding.exact_length=true"], ["exact_length=true", "needs a length"]),
        (["decoding.exact_length=true", "decoding.length=1"], ["length=1", "at least 2"]),
        (["decoding.exact_length=true", "decoding.candidates=3"], ["exact_length=true", "candidates=3"]),
        ([*AR, "training.image_free_probability=0.2"], ["image_free_probability=0.2", "0"]),
        (["data.learn_padding=true"], ["data.learn_padding=true", "model.length_prediction=false"]),
        (["decoding.method=left_to_right"], ["method=left_to_right", "diffusion", "best_first"]),
        (["decoding.beams=3"], ["beams=3", "method=left_to_right"]),
        ([*AR, "decoding.beams=3", "decoding.temperature=1"], ["beams=3", "temperature=0"]),
        (
            ["training.batch_size=12", "data.captions_per_image=5"],
            ["training.batch_size=12", "data.captions_per_image=5"],
        ),
    ],
)
def test_cross_checks_name_both_settings(overrides, named, write):
    text = message(write(""), overrides)
    assert all(part in text for part in named)


def test_cross_checks_let_the_limits_pass(write):
    edge = ["model.positions=20", "decoding.length=20", "training.batch_size=15", "data.captions_per_image=5"]
    load_recipe(write(""), [*edge, "diffusion.keep_end=0.1", "diffusion.mask_end=0.9"])
    load_recipe(write(""), [*AR, "decoding.beams=3"])
    load_recipe(write(""), [*AR, "decoding.exact_length=true", "decoding.length=9"])


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    assert message(tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: no such recipe")
    assert message(tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_files_that_are_no_recipe(write, tmp_path):
    assert "not valid YAML" in message(write("data: [a\nmodel: 3"))
    assert "not valid YAML" in message(write("? [a]\n: b"))
    assert "contains no sections" in message(write("- data\n- model"))
    assert "contains no sections" in message(write("just words"))
    assert "keys should be strings" in message(write("~: 3"))
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    assert "cannot be read" in message(tmp_path / "image.yaml")


def test_every_setting_survives_dump_and_parse():
    changed = parse_settings(
        Recipe,
        {
            "data": {"cache": "c", "long_captions": "truncate", "captions_per_image": 2},
            "tokenizer": {"kind": "gpt2", "source": "folder"},
            "model": {"positions": 25, "length_prediction": False},
            "diffusion": {"mask_end": 0.9},
            "training": {"betas": (0.8, 0.95), "learning_rate": 3e-5},
            "decoding": {"steps": 7, "length": 9, "method": "ancestral"},
        },
        "test",
    )
    values = dump_settings(changed)
    assert values["training"]["betas"] == [0.8, 0.95]
    assert set(values) == set(SECTIONS)
    assert parse_settings(Recipe, values, "test") == changed


def test_a_section_alone_names_its_source():
    with pytest.raises(RecipeError, match=r"^model\.json: unknown setting 'step'; did you mean 'steps'\?$"):
        parse_settings(DecodingSettings, {"step": 3}, "model.json")


@pytest.mark.parametrize(
    "change",
    ["data.cache=x", "data.text=x", "data.long_captions=drop", "tokenizer.kind=compact"],
)
def test_settings_that_exclude_shards_are_refused(write, change):
    good = ["data.shards=[{path: s}]", "data.long_captions=truncate", "tokenizer.kind=gpt2"]
    assert load_recipe(write(""), good).data.shards[0].weight == 1
    name, _, value = change.partition("=")
    text = message(write(""), [*good, change])
    assert name.split(".")[0] in text and "shards" in text and value


@pytest.mark.parametrize("change", ["training.objective=self_critical", "data.consensus=1", "encoder.init=x"])
def test_a_retired_setting_says_where_it_went(write, change):
    text = message(write(""), [change])
    assert f"{change.split('=')[0]!r} was removed" in text and "docs/research/experiments.md" in text


def test_the_old_name_of_a_shipped_recipe_still_works(caplog):
    folder = Path(__file__).parents[2] / "recipes" / "ablation"
    assert load_recipe(folder / "twin.yaml") == load_recipe(folder / "autoregressive.yaml")
    (said,) = caplog.messages
    assert said == f"{folder / 'twin.yaml'}: deprecated name; use {folder / 'autoregressive.yaml'}"


def test_a_users_recipe_may_be_called_twin(write, tmp_path, caplog):
    write("").rename(tmp_path / "twin.yaml")
    assert load_recipe(tmp_path / "twin.yaml") == Recipe()
    assert not caplog.records
