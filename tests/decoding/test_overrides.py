"""A model's own settings give way to what a caller asks for; only what the caller gave is complained of."""

import pytest

from ddcap import Captioner
from ddcap.commands import main
from ddcap.errors import DDCapError, RecipeError


@pytest.fixture(scope="module")
def distinct(tiny_model_folder, tmp_path_factory):
    """A model whose own settings, like the default's, go with best-first inference only."""
    folder = tmp_path_factory.mktemp("distinct") / "model"
    Captioner.from_pretrained(tiny_model_folder).save(folder, distinct=True, steps=4)
    return Captioner.from_pretrained(folder)


def test_ancestral_needs_no_setting_that_cannot_be_given(distinct, photos):
    settings = distinct.settings(method="ancestral")
    assert (settings.method, settings.distinct, settings.steps) == ("ancestral", False, 4)
    assert distinct(photos[0], method="ancestral")[0].text
    assert distinct.settings(method="ancestral", preset="fast").distinct is False
    assert distinct.settings(method="best_first").distinct is True
    assert distinct.settings(schedule="released").distinct is False
    with pytest.raises(RecipeError, match="distinct=true: needs method=best_first"):
        distinct.settings(method="ancestral", distinct=True)  # both are asked for


def test_the_wrong_method_is_what_is_said_to_be_wrong(distinct, tiny_ar_folder):
    wrong = "method=left_to_right: a model of kind diffusion needs method=best_first or ancestral"
    with pytest.raises(RecipeError, match=wrong):
        distinct.settings(method="left_to_right")
    with pytest.raises(
        RecipeError, match="method=ancestral: a model of kind autoregressive needs method=left"
    ):
        Captioner.from_pretrained(tiny_ar_folder).settings(method="ancestral")


def test_a_temperature_takes_the_place_of_beams(tiny_ar_folder, tmp_path):
    Captioner.from_pretrained(tiny_ar_folder).save(tmp_path / "ar", beams=3)
    ar = Captioner.from_pretrained(tmp_path / "ar")
    assert ar.settings(temperature=1.0).beams == 1 and ar.settings().beams == 3
    with pytest.raises(RecipeError, match="beams=2: needs method=left_to_right and temperature=0"):
        ar.settings(temperature=1.0, beams=2)


def test_the_default_decodes_by_other_methods(photos, capsys):
    """The default runs best-first only through ONNX Runtime, and ancestrally through PyTorch."""
    arguments = ["caption", str(photos[0]), "--format", "jsonl", "--candidates", "1", "--method"]
    assert main([*arguments, "ancestral", "--runtime", "torch"]) == 0
    assert '"caption"' in capsys.readouterr().out
    for method, reason in (("ancestral", "--runtime torch"), ("left_to_right", "a model of kind diffusion")):
        assert main([*arguments, method]) == 1
        told = capsys.readouterr().err
        assert f"method={method}: " in told and reason in told and "distinct" not in told


@pytest.mark.parametrize("value", ["2", "30", "-0.1", "nan", "inf", "sure"])
def test_a_threshold_that_is_no_probability_is_refused(photos, value, capsys):
    with pytest.raises(SystemExit):
        main(["caption", str(photos[0]), "--min-sure", value])
    assert f"argument --min-sure: {value!r} is not a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", [2, 30, float("nan"), -0.1, "often"])
def test_a_wrong_threshold_is_refused_in_python(distinct, photos, value):
    (result,) = distinct.caption_each(photos[:1])
    with pytest.raises(DDCapError, match=r"min_sure=.*: is not a probability; give a number from 0 to 1"):
        result.withheld(value)
    assert result.withheld(None) is None
