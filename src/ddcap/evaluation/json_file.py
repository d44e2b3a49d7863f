"""JSON files that people hand around: a wrong path or a damaged file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddcap.errors import DataError, remedy
from ddcap.files import write_text


def read_json(path: str | Path, remedy: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        remedy: what to give instead, for the message.

    Raises:
        DataError: if it cannot be read, or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); {remedy}") from None


def write_json(path: str | Path, content: Any, indent: int = 1) -> None:
    """Write one JSON file.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        write_text(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None
