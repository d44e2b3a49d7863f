import os
import subprocess
import sys
from pathlib import Path

import ddcap

ROOT = Path(__file__).parents[2]


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(ddcap.__file__).parents[1])}
    command = [sys.executable, "-m", "experiments", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_entry_point_has_both_commands():
    told = run("--help")
    assert told.returncode == 0 and "usage: python -m experiments" in told.stdout
    assert "ablate" in told.stdout and "report" in told.stdout


def test_an_error_takes_one_line_that_names_the_program():
    told = run("report", "nothing")
    assert told.returncode == 1
    assert told.stderr.startswith("python -m experiments: nothing") and told.stderr.count("\n") == 1
    assert "run `python -m experiments ablate`" in told.stderr
