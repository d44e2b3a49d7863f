import json
import shutil

from experiments.analysis.run import main


def test_one_command_writes_figures_and_chart(analysed):
    content = json.loads((analysed / "analysis.json").read_text())
    assert content["format"] == "ddcap-analysis-1"
    assert (content["split"], content["pictures"]) == ("val", 2)
    assert {"loss", "commitment", "compute", "reranking"} <= content.keys()
    assert "per_image" not in json.dumps(content) and "made_from" not in json.dumps(content)
    assert (analysed / "why.png").read_bytes().startswith(b"\x89PNG")


def test_finished_parts_are_not_repeated(analysed, best_folders, plan_file, tmp_path, capsys):
    copy = shutil.copytree(analysed, tmp_path / "analysis")
    content = (copy / "analysis.json").read_text()
    (copy / "analysis.json").unlink()
    recipe = str(plan_file.parent / "g.yaml")
    assert main([*best_folders, recipe, "--limit", "2", "--output", str(copy)]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(copy / "analysis.json"), str(copy / "why.png")]
    assert "decoding" not in said.err
    assert (copy / "analysis.json").read_text() == content


def test_a_single_analysis_can_be_chosen(best_folders, plan_file, tmp_path, capsys):
    recipe = str(plan_file.parent / "g.yaml")
    arguments = [*best_folders, recipe, "--limit", "2", "--output", str(tmp_path), "--looks", "loss"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "analysis.json")]
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert "loss" in content and "commitment" not in content and "compute" not in content


def test_models_in_the_wrong_order_are_one_line(best_folders, plan_file, tmp_path, capsys):
    recipe = str(plan_file.parent / "g.yaml")
    assert main([*best_folders[::-1], recipe, "--output", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is of kind autoregressive; give the diffusion model first" in message
    assert message.count("\n") == 1


def test_models_of_other_tokenizers_are_one_line(best_folders, plan_file, tiny_ar_folder, tmp_path, capsys):
    recipe = str(plan_file.parent / "g.yaml")
    assert main([best_folders[0], str(tiny_ar_folder), recipe, "--output", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "have different tokenizers" in message and message.count("\n") == 1
