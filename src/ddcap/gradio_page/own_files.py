"""The page's own files: templates, scripts, styles."""

from importlib.resources import files


def own_file(name: str) -> str:
    """The text of one, by its name."""
    return (files("ddcap.gradio_page") / name).read_text(encoding="utf-8")
