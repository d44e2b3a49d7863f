"""examples/quickstart.ipynb runs, and shows what it showed when it was stored."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


def printed(notebook):
    """What each cell of code printed or gave back, as text; images left out."""
    found = []
    for cell in notebook.cells:
        outputs = [output for output in cell.get("outputs", []) if "image/jpeg" not in output.get("data", {})]
        found += [output.get("text") or output["data"]["text/plain"] for output in outputs]
    return found


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_stored():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 100_000
    again = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(again, timeout=120, coalesce_streams=True, resources=resources).execute()
    assert len(printed(stored)) == len(printed(again)) == 7
    # other processors round differently, so that a word may differ where two are nearly as likely
    assert "coffee" in printed(again)[0] and "coffee" in printed(stored)[0]
    assert all(text.strip() for text in printed(again))
