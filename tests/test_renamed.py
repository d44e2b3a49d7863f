"""Old names that programs may have: they work, and say what to write instead."""

import importlib
import subprocess
import sys

import pytest

import ddcap
from ddcap.renamed import NEW_NAMES, install


@pytest.mark.parametrize("old", NEW_NAMES)
def test_an_old_module_name_imports_and_gives_the_new_one(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated; import {NEW_NAMES[old]} instead$"):
        module = importlib.import_module(old)
    new = importlib.import_module(NEW_NAMES[old])
    public = [name for name in vars(new) if not name.startswith("_")]
    assert public and all(getattr(module, name) is getattr(new, name) for name in public)
    assert new.__name__ == NEW_NAMES[old]


def test_a_program_with_old_names_runs_and_is_told_its_own_line():
    lines = [
        "from ddcap.decoding.evidence import CaptionEvidence",
        "from ddcap.model.kinds import build_model",
        "print(CaptionEvidence.__module__, build_model.__module__)",
    ]
    run = [sys.executable, "-W", "default", "-c", "\n".join(lines)]
    result = subprocess.run(run, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["ddcap.decoding.scoring", "ddcap.model.loading"]
    warnings = [line for line in result.stderr.splitlines() if "deprecated" in line]
    assert [line.partition(" ")[0] for line in warnings] == ["<string>:1:", "<string>:2:"]


def test_names_that_never_were_are_refused():
    with pytest.raises(ModuleNotFoundError, match=r"ddcap\.model\.nothing"):
        importlib.import_module("ddcap.model.nothing")


def test_old_names_are_looked_up_once():
    before = len(sys.meta_path)
    install()
    importlib.reload(ddcap)
    assert len(sys.meta_path) == before
