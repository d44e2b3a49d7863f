import json
import re
import signal
import time

import forked
import pytest
import yaml

from ddcap.commands import main
from experiments.plan import load_plan
from experiments.run import METRICS_NAME, ablate
from experiments.side_by_side import parts_of


@pytest.fixture
def small_plan(plan_file):
    """Three trainings: f from two seeds, and a curve."""
    path = plan_file.with_name("side_by_side.yaml")
    plan = {
        "rows": {"f": [0, 1]},
        "curves": {"rows": {"g": [0]}, "shares": {"0.5": ["training.epochs=4"]}},
        "infilling": {"shares": []},
    }
    path.write_text(yaml.safe_dump(plan))
    return path


@pytest.fixture
def start():
    """Start `ddcap` with arguments; whatever a test does, nothing of it runs on."""
    started = []

    def begin(command):
        started.append(forked.Process("-m", "ddcap", *command))
        return started[-1]

    yield begin
    for process in started:
        process.end_all()


def test_a_part_is_one_training_with_all_that_takes_it(plan_file):
    plan = load_plan(plan_file, "out")
    parts = parts_of(plan)
    assert len(parts) == 10
    assert all(len({one.recipe.training.output for one in part.trials}) == 1 for part in parts)
    assert sum(len(part.trials) for part in parts) == len(plan.trials)


@pytest.mark.slow
def test_two_at_a_time_give_the_captions_of_one_at_a_time(small_plan, finished, tmp_path):
    said = []
    plan = load_plan(small_plan, tmp_path)
    metrics = ablate(plan, tmp_path, fast=True, jobs=2, say=said.append)
    assert {line for line in said if line.startswith("done: ")} == {
        f"done: {name}" for name in ("f-seed0", "f-seed1", "g-0.5-seed0")
    }
    assert not [line for line in said if "starting training" in line]  # nothing was left to the one process
    for name in ("f-seed0", "f-seed1"):
        one, two = (
            json.loads((folder / "results" / f"{name}.json").read_text())
            for folder in (finished[0], tmp_path)
        )
        assert one == two
    assert json.loads(metrics.read_text())["rows"]["f"]["seeds"].keys() == {"0", "1"}


@pytest.mark.slow
def test_a_signal_saves_all_trainings_and_the_same_command_goes_on(small_plan, tmp_path, start):
    overrides = ["training.epochs=4000", "training.validate_every=4000", "training.checkpoint_every=1000000"]
    command = ["ablate", str(small_plan), *overrides, "--output", str(tmp_path), "--fast", "--jobs", "2"]
    process = start(command)
    logs = [tmp_path / "trainings" / name / "log.jsonl" for name in ("f-seed0", "f-seed1")]
    deadline = time.monotonic() + 60
    while not all(log.exists() and log.read_text() for log in logs):
        assert time.monotonic() < deadline, "no training began"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command goes on" in said
    for name in ("f-seed0", "f-seed1"):
        assert len(list((tmp_path / "trainings" / name / "checkpoints").iterdir())) == 1, said
    assert not (tmp_path / "trainings" / "g-0.5-seed0").exists()


@pytest.mark.slow
def test_a_signal_spares_a_process_that_has_nothing_to_do(small_plan, tmp_path, start):
    plan = yaml.safe_load(small_plan.read_text())
    long = small_plan.with_name("f.yaml").read_text().replace("extends", "training: {epochs: 4000}\nextends")
    small_plan.with_name("f_long.yaml").write_text(long)
    small_plan.write_text(yaml.safe_dump({**plan, "rows": {"f_long": [0]}}))
    command = ["ablate", str(small_plan), "--output", str(tmp_path), "--fast", "--jobs", "2"]
    process = start(command)
    deadline = time.monotonic() + 60
    while not (tmp_path / "results" / "g-0.5-seed0.json").exists():
        assert time.monotonic() < deadline, "the short training did not end"
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    log = (tmp_path / "trainings" / "f_long-seed0" / "log.jsonl").read_text().splitlines()
    (*_, saved) = sorted((tmp_path / "trainings" / "f_long-seed0" / "checkpoints").iterdir())
    assert int(re.search(r"(\d+)", saved.name).group()) >= json.loads(log[-1])["step"]


def test_a_mistake_in_one_training_is_told(small_plan, tmp_path, capsys):
    command = ["ablate", str(small_plan), "data.json=absent.json", "--output", str(tmp_path), "--jobs", "2"]
    assert main(command) == 1
    assert "absent.json" in capsys.readouterr().err
    assert not (tmp_path / METRICS_NAME).exists()
    assert main([*command[:-1], "0"]) == 1
    assert "--jobs 0: train at least 1 model" in capsys.readouterr().err
