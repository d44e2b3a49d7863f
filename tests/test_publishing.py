import json
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard

from ddcap.captioner import Captioner
from ddcap.commands import main
from ddcap.errors import CheckpointError, DataError
from ddcap.model.config import DETECTOR_LICENCE_NAME, DETECTOR_NAME, read_config
from ddcap.model.detector import Detector
from ddcap.publishing import find_model, write_card

EVALUATION = {
    "metrics": {"CIDEr": 51.55, "BLEU-4": 19.02},
    "intervals_95": {"CIDEr": [48.34, 54.78]},
    "images": 1000,
    "split": "test",
    "tokenization": "ptb-java",
}


def test_a_folder_holds_the_model_and_a_card_about_it(tiny_model_folder, tmp_path, photos):
    captioner = Captioner.from_pretrained(tiny_model_folder)
    target = tmp_path / "mine"
    told = {"evaluation": EVALUATION, "licence": "mit", "data": "eight photographs"}
    assert captioner.push_to_hub(target, **told) == str(target)
    again = Captioner.from_pretrained(target)
    assert again(photos[0])[0].length == captioner(photos[0])[0].length
    card = ModelCard.load(target / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "ddcap"
    assert card.data.pipeline_tag == "image-to-text"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == EVALUATION[
        "metrics"
    ]
    assert "| CIDEr | 51.5 | [48.3, 54.8] |" in card.text or "| CIDEr | 51.6 | [48.3, 54.8] |" in card.text
    config = captioner.model.config
    assert f"width {config.model.width}" in card.text and "eight photographs" in card.text
    assert '    pip install -c constraints.txt ".[train]"\n' in card.text  # as every document installs it


def test_without_an_evaluation_the_card_says_so_and_a_written_one_is_kept(tiny_ar_folder, tmp_path):
    captioner = Captioner.from_pretrained(tiny_ar_folder)
    captioner.push_to_hub(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Not evaluated yet" in text and "Autoregressive" in text
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "ddcap"
    (tmp_path / "README.md").write_text("mine")
    captioner.push_to_hub(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_push_writes_a_folder_with_its_evaluation(tiny_model_folder, tmp_path, capsys):
    (tmp_path / "test.json").write_text(json.dumps(EVALUATION))
    target = str(tmp_path / "out")
    arguments = ["push", str(tiny_model_folder), target, "--evaluation", str(tmp_path / "test.json")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == target
    assert "1000 images" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "test.json").write_text("{")
    assert main(arguments) == 1
    assert "not valid JSON" in capsys.readouterr().err


def test_mistakes_are_one_line(tiny_model_folder, tmp_path):
    captioner = Captioner.from_pretrained(tiny_model_folder)
    with pytest.raises(DataError, match="not the output of 'ddcap evaluate --json'"):
        captioner.push_to_hub(tmp_path / "a", evaluation={"metrics": {}})
    with pytest.raises(CheckpointError, match="upload to the Hub failed") as caught:
        captioner.push_to_hub("not a/hub id")
    assert "\n" not in str(caught.value)


def test_a_card_names_the_detector_without_opening_its_graph(tmp_path):
    default = find_model("default")
    shutil.copy(default / DETECTOR_LICENCE_NAME, tmp_path)
    assert not (tmp_path / DETECTOR_NAME).exists()
    card = write_card(tmp_path, read_config(default), parameters=1).read_text()
    assert f"| detector | {Detector.load(default).origin}; licence: " in card


def test_the_defaults_card_says_what_the_hub_asks():
    card = ModelCard.load(find_model("default") / "README.md")
    assert card.data.library_name == "ddcap" and card.data.pipeline_tag == "image-to-text"
    assert card.data.language == "en" and card.data.datasets
    figures = {result.dataset_name: result.metric_value for result in card.data.eval_results}
    for name, value in figures.items():
        assert f"**{value}" in card.text, name
