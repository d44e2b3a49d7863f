"""Links from pages to files outside docs/: the site carries those files, under repository/."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from website.markdown import outside_code, without_code

_LINK = re.compile(
    r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<after>(?:\s+\"[^\"]*\")?\))"
)
_HTML_IMAGE = re.compile(r'<img src="(?P<target>[^"]+)" width="(?P<width>\d+)" alt="(?P<alt>[^"]*)">')
_IMAGES = (".png", ".jpg", ".gif", ".svg", ".ipynb")
_HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"


def site_links(markdown: str, address: str, root: Path) -> str:
    """A page's Markdown with its relative links led to where their files are on the site.

    Args:
        markdown: of the page.
        address: of the page on the site, as MkDocs names it: "finetune.md", "repository/src/....md".
        root: of the repository.

    Raises:
        FileNotFoundError: if a link leads to no file.
    """
    source = _source(address, root)

    def lead(found: re.Match[str]) -> str:
        target = found["target"]
        if _is_elsewhere(target):
            return found[0]
        file = _resolve(source, target)
        if not file.exists():
            raise FileNotFoundError(f"{source.relative_to(root)} links to {target}: no such file")
        there = _address(file, root)
        way = posixpath.relpath(there, posixpath.dirname(address) or ".")
        return f"{found['before']}{way}{found['anchor'] or ''}{found['after']}"

    return outside_code(markdown, lambda prose: _LINK.sub(lead, _images_in_markdown(prose)))


def repository_files(root: Path) -> dict[str, str | bytes]:
    """Address on the site to content, for every file outside docs/ that a page leads to, at any remove."""
    found: dict[str, str | bytes] = {}
    left = sorted((root / "docs").rglob("*.md"))
    while left:
        page = left.pop()
        for target in linked_files(page):
            address = _address(target, root)
            if not address.startswith("repository/") or address in found or not target.exists():
                continue
            target = _page_of_folder(target)
            found[address] = _content(target, root)
            if target.suffix == ".md":
                left.append(target)
    return found


def linked_files(page: Path) -> Iterator[Path]:
    """The files that a page of Markdown links to."""
    for link in _LINK.finditer(_images_in_markdown(without_code(page.read_text(encoding="utf-8")))):
        if not _is_elsewhere(link["target"]):
            yield _resolve(page, link["target"])


def _images_in_markdown(prose: str) -> str:
    """Images in HTML as Markdown: GitHub takes a width only in HTML, MkDocs an address only in Markdown."""
    return _HTML_IMAGE.sub(r"![\g<alt>](\g<target>){ width=\g<width> }", prose)


def _is_elsewhere(target: str) -> bool:
    return re.match(r"[a-z]+:", target) is not None


def _resolve(page: Path, target: str) -> Path:
    return Path(os.path.normpath(page.parent / unquote(target)))


def _page_of_folder(file: Path) -> Path:
    readme = file / "README.md"
    return readme if file.is_dir() and readme.exists() else file


def _address(file: Path, root: Path) -> str:
    file = _page_of_folder(file)
    inside = file.relative_to(root).as_posix()
    if inside.startswith("docs/"):
        return inside.removeprefix("docs/")
    if file.is_dir():
        return f"repository/{inside}/index.md"
    return f"repository/{inside}" if file.suffix in (".md", *_IMAGES) else f"repository/{inside}.md"


def _source(address: str, root: Path) -> Path:
    """The file that a page of the site was made from; `_address` the other way round."""
    if not address.startswith("repository/"):
        return root / "docs" / address
    file = root / address.removeprefix("repository/")
    return file if file.exists() else file.with_suffix("")


def _content(file: Path, root: Path) -> str | bytes:
    name = file.relative_to(root).as_posix()
    if file.is_dir():
        names = sorted(path.name + "/" * path.is_dir() for path in file.iterdir() if path.name[0] not in "._")
        return f"{_HIDDEN}# {name}/\n\n" + "".join(f"- `{one}`\n" for one in names)
    if file.suffix in _IMAGES:
        return file.read_bytes()
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    language = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json"}.get(file.suffix, "text")
    return f"{_HIDDEN}# {name}\n\n`````{language}\n{text.rstrip()}\n`````\n"
