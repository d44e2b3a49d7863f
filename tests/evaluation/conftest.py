"""What the tests of scores share."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program called java in front of the path: it knows its version, and runs the script."""

    def install(script: str, knows_version: bool = True) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        version = (
            "import sys\nif '-version' in sys.argv: sys.exit(print('version \"17\"', file=sys.stderr))\n"
        )
        path = folder / "java"
        path.write_text(f"#!{sys.executable}\n{version if knows_version else ''}{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install
