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
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
        is_json = ".json" in path.suffixes[-2:]
        captions = list(_strings(json.loads(text))) if is_json else text.splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; data.text names captions without pictures") from None
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read ({reason}); give a .txt with a caption a line, or a .json of captions"
        ) from None
    captions = [caption.strip() for caption in captions if caption.strip()]
    if not captions:
        raise DataError(
            f"{path}: holds no caption; give a .txt with a caption a line, or a .json of captions"
        )
    return [
        CaptionedImage(f"{path.name}:{number}", path, "train", (caption,))
        for number, caption in enumerate(captions)
    ]


def _strings(value: Any) -> Iterator[str]:
    """All strings of nested lists and dictionaries, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
