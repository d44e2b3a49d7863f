"""Functions that MkDocs calls while it builds the site, see `hooks` in mkdocs.yml.

Pages are written for GitHub. On the site three things are done to them: links to files outside docs/ lead
to copies of those files, the reference is filled in from the code, and formulas become MathML.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # MkDocs loads this file by its path

from mkdocs.structure.files import File, Files  # noqa: E402

from website.diagram import with_image  # noqa: E402
from website.formulas import formulas_to_mathml  # noqa: E402
from website.reference import fill_reference  # noqa: E402
from website.repository import repository_files, site_links  # noqa: E402


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that pages link to."""
    for address, content in repository_files(ROOT).items():
        files.append(File.generated(config, address, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn a page as GitHub shows it into one of the site."""
    address = page.file.src_uri
    if address == "architecture.md":
        markdown = with_image(markdown, "images/architecture.png")
    return formulas_to_mathml(site_links(fill_reference(markdown, address), address, ROOT))
