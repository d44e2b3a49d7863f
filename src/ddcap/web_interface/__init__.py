"""The web interface that both pages share: what it looks like, what it says, and how a caption is drawn.

`ddcap.browser` puts it before a model that runs in the browser, `ddcap.gradio_page` before the service. Both
give it an engine that answers, see interface/app.js. Its sample photographs are three of examples/.
"""

from pathlib import Path

INTERFACE = Path(__file__).parent / "interface"
"""Folder of its files: markup, style, scripts, samples."""


def interface_body() -> str:
    """Return the markup that the scripts work on, as HTML."""
    return (INTERFACE / "body.html").read_text(encoding="utf-8")
