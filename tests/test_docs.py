"""What the documents promise: commands parse, links lead somewhere, examples run."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from ddcap.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    for page in PAGES:
        for line in page.read_text().splitlines():
            stripped = line.strip()
            if stripped.startswith("ddcap ") and "..." not in stripped:
                yield pytest.param(stripped, id=f"{page.name}: {stripped}")


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_in_the_documents_parses(command):
    words = shlex.split(command, comments=True)
    build_parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_paper_map_names_files_that_exist():
    names = re.findall(r"`((?:\w+/)+\w+\.py)`", (ROOT / "docs" / "paper_map.md").read_text())
    assert len(names) > 10
    for name in names:
        assert (ROOT / "src" / "ddcap" / name).exists() or (ROOT / name).exists(), name


def test_the_readme_holds_the_two_commands_that_ci_runs():
    block = (ROOT / "README.md").read_text().split("<!-- set-up -->")[1].split("<!-- end of set-up -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("pip ")]
    assert len(lines) == 2
    assert "ddcap caption examples/photos" in lines[0] and "pytest" in lines[1]


def run_example(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_draw_trace(monkeypatch, tmp_path, photos, tiny_model_folder):
    run_example(monkeypatch, "draw_trace.py", photos[0], tmp_path / "trace.png", "--model", tiny_model_folder)
    assert (tmp_path / "trace.png").stat().st_size > 10_000


def test_caption_folder(monkeypatch, tmp_path, photos, tiny_model_folder):
    out = tmp_path / "captions.csv"
    run_example(monkeypatch, "caption_folder.py", photos[0].parent, out, "--model", tiny_model_folder)
    assert len(out.read_text().splitlines()) == len(photos) + 1
