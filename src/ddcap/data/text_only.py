"""Captions without pictures, to learn the language of captions from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddcap.data.karpathy import CaptionedImage
from ddcap.errors import DataError


def load_texts(path: str | Path) -> list[CaptionedImage]:
    """Captions of a file, one record for each, in its order; their picture is nowhere.

    Args:
        path: `.txt` with a caption a line, or `.json` with captions in lists, in whatever nesting; `.gz`
            behind it is unpacked.

    Raises:
        DataError: if the file is missing, is neither, or holds no caption.
    """
    path = Path(path)
    captions = (caption for group in _groups(_read(path)) for caption in group)
    return [_record(path, number, (caption,)) for number, caption in enumerate(captions)]


def load_text_groups(path: str | Path) -> list[CaptionedImage]:
    """The same with captions that stand in one list of a JSON together: they are of one picture.

    Raises:
        DataError: as `load_texts`.
    """
    path = Path(path)
    return [_record(path, number, tuple(group)) for number, group in enumerate(_groups(_read(path)))]


def _record(path: Path, number: int, captions: tuple[str, ...]) -> CaptionedImage:
    return CaptionedImage(f"{path.name}:{number}", path, "train", captions)


def _read(path: Path) -> Any:
    """What a JSON holds, or a list with a list for each line of a text file."""
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        is_json = ".json" in path.suffixes[-2:]
        found = json.loads(text) if is_json else [[line] for line in text.splitlines()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; data.text names captions without pictures") from None
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read ({reason}); give a .txt with a caption a line, or a .json of captions"
        ) from None
    if not any(_groups(found)):
        raise DataError(
            f"{path}: holds no caption; give a .txt with a caption a line, or a .json of captions"
        )
    return found


def _groups(value: Any) -> Iterator[list[str]]:
    """The strings that stand in one list or dictionary of nested ones, without blank ones and keys."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict | list):
        inside = list(value.values() if isinstance(value, dict) else value)
        captions = [text.strip() for text in inside if isinstance(text, str) and text.strip()]
        if captions:
            yield captions
        for inner in inside:
            if isinstance(inner, dict | list):
                yield from _groups(inner)
