from pathlib import Path

import pytest


@pytest.fixture
def chelsea(photos: list[Path]) -> Path:
    """A photograph of a cat, wider than high."""
    (path,) = [path for path in photos if path.stem == "chelsea"]
    return path
