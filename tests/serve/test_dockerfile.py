"""The Dockerfile's steps, as far as they can be run without a container."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddcap.commands import build_parser

ROOT = Path(__file__).parents[2]
STEPS = [
    line.partition(" ")[::2]
    for line in (ROOT / "Dockerfile").read_text().splitlines()
    if line and not line.startswith("#")
]


def step(name):
    return [text for kind, text in STEPS if kind == name]


@pytest.mark.slow
def test_the_copied_files_build_the_package(tmp_path):
    """Whose wheel holds the default model, its confidence and the list of neutral words."""
    pytest.importorskip("hatchling")
    for sources in step("COPY"):
        *names, target = sources.split()
        for name in names:
            place = tmp_path / target
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], check=True, capture_output=True, text=True
    ).stdout
    for name in (
        "pretrained/default/model.safetensors",
        "default/confidence.safetensors",
        "decoding/neutral.txt",
    ):
        assert name in listed


def test_the_service_runs_as_an_unprivileged_user():
    assert step("USER") == ["ddcap"] and "useradd --system" in " ".join(step("RUN"))
    assert step("RUN")[0].startswith('pip install --no-cache-dir -c constraints.txt ".[serve]"')
    command, *words = json.loads(step("ENTRYPOINT")[0])
    assert command == "ddcap"
    options = build_parser().parse_args(words)
    assert options.host == "0.0.0.0" and str(options.port) == step("EXPOSE")[0]
    (check,) = step("HEALTHCHECK")
    assert f"127.0.0.1:{options.port}/readyz" in check
    compile(json.loads(re.search(r"CMD (\[.*\])", check)[1])[2], "check", "exec")
