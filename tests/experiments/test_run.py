import json
import shutil
from pathlib import Path

import pytest

from ddcap.commands import main
from ddcap.errors import DataError
from ddcap.evaluation.comparison import compare
from experiments.plan import load_plan
from experiments.run import METRICS_NAME, ablate, load_ablation


def test_results_have_every_part(finished):
    output, _ = finished
    results = load_ablation(output)
    assert list(results["rows"]) == ["a", "d", "f", "g", "twin", "twin_beams"]
    assert list(results["rows"]["f"]["seeds"]) == ["0", "1"]
    assert set(results["infilling"]) == {"0.25", "0.75"}
    assert {name: len(points) for name, points in results["sweeps"].items()} == {
        "guidance": 2,
        "length": 4,  # 5, predicted, expected, true
        "replacement_mass": 2,
    }
    assert {"d-seed0", "f-seed0", "f-seed1", "g-seed0", "twin-seed0"} < set(results["trainings"])
    for training in results["trainings"].values():
        assert training["steps"] > 0
        assert training["hours"] >= 0
    claims = {(claim["better"], claim["worse"]) for claim in results["claims"]}
    assert claims == {
        ("f", "d"),
        ("g", "f"),
        ("g", "twin"),
        ("g", "twin_beams"),
        ("d", "a"),
        ("twin_beams", "twin"),
    }


def test_shared_trainings_run_once(finished):
    output, said = finished
    started = [line for line in said if "training" in line]
    assert len(started) == len(set(started)) == len(list((output / "trainings").iterdir())) == 10


def test_claims_are_judged_by_images_and_seeds_together(finished):
    claims = {(c["better"], c["worse"]): c for c in load_ablation(finished[0])["claims"]}
    tested = {pair for pair, claim in claims.items() if claim["p"] is not None}
    assert tested == {("f", "d"), ("d", "a")}  # the rows with two seeds
    assert claims["d", "a"]["same_trainings"] and not claims["f", "d"]["same_trainings"]
    assert claims["twin_beams", "twin"]["same_trainings"]
    for pair in tested:
        claim = claims[pair]
        low, high = claim["interval_95_seeds"]
        assert low < claim["difference"] < high and set(claim["per_seed"]) == {"0", "1"}
        assert claim["difference"] == pytest.approx(sum(claim["per_seed"].values()) / 2, abs=1e-3)
    first, second = sorted((claims[pair] for pair in tested), key=lambda claim: claim["p"])
    assert first["p_holm"] == pytest.approx(min(1, 2 * first["p"]))
    assert second["p_holm"] == pytest.approx(max(first["p_holm"], second["p"]))


def test_the_mean_over_seeds_and_its_interval(finished):
    output, _ = finished
    row = load_ablation(output)["rows"]["f"]
    ciders = [scores["CIDEr"] for scores in row["seeds"].values()]
    assert row["mean"]["CIDEr"] == pytest.approx(sum(ciders) / 2, abs=1e-3)
    assert row["interval_95"][0] <= row["mean"]["CIDEr"] <= row["interval_95"][1]


def test_results_can_be_compared_like_any_evaluation(finished):
    output, _ = finished
    results = load_ablation(output)
    compared = compare(output / "results" / "twin-seed0.json", output / "results" / "g-seed0.json")
    claim = next(c for c in results["claims"] if (c["better"], c["worse"]) == ("g", "twin"))
    difference = compared.differences["CIDEr"]
    assert difference.second - difference.first == pytest.approx(claim["difference"])
    assert difference.interval == pytest.approx(claim["interval_95"])


def test_infilling_differences_are_paired(finished):
    output, _ = finished
    for systems in load_ablation(output)["infilling"].values():
        for name in ("whole", "blanks", "exact"):
            expected = systems["g"][name]["mean"] - systems["twin"][name]["mean"]
            assert systems["g - twin"][name]["mean"] == pytest.approx(expected, abs=2e-3)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished ablation, to run again."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_second_run_repeats_nothing_and_finds_the_same(copy, plan_file):
    output = copy
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != METRICS_NAME}
    text = (output / METRICS_NAME).read_text()
    ablate(load_plan(plan_file, output), output, fast=True)
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.name != METRICS_NAME}
    assert {path for path in before if not path.is_dir() and before[path] != after[path]} == set()
    assert before.keys() == after.keys()
    assert (output / METRICS_NAME).read_text() == text


def test_a_lost_result_is_made_again_from_the_training(finished, copy, plan_file):
    output, _ = finished
    lost = copy / "results" / "g-seed0.json"
    expected = json.loads(lost.read_text())["predictions"]
    lost.write_text(lost.read_text()[:100])
    said = []
    ablate(load_plan(plan_file, copy), copy, fast=True, say=said.append)
    assert not any("training" in line for line in said)
    assert json.loads(lost.read_text())["predictions"] == expected
    metrics = [json.loads((folder / METRICS_NAME).read_text()) for folder in (output, copy)]
    assert metrics[0] == metrics[1]


def test_the_command_prints_the_tables_and_leaves_them(copy, plan_file, capsys):
    output = copy
    assert main(["ablate", str(plan_file), "--output", str(output), "--fast"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("## Does the order turn?") and "## Table 1" in printed.out
    assert (output / "results.md").read_text() in printed.out
    assert "row f, seed 1" in printed.err
    assert (output / "table1.png").is_file()
    assert main(["ablate", str(output / "none.yaml")]) == 1


def test_no_results_is_one_line(tmp_path):
    with pytest.raises(DataError, match="run `python -m experiments ablate`"):
        load_ablation(tmp_path)
    Path(tmp_path / METRICS_NAME).write_text("[]")
    with pytest.raises(DataError, match="not an ablation's results"):
        load_ablation(tmp_path)
