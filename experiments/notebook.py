"""Finished parts of an ablation on disk, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddcap.errors import DataError, remedy
from ddcap.files import write_text


class Notebook:
    """A folder of JSON files, one for every finished part.

    Args:
        folder: made if missing.

    Raises:
        DataError: if it cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be created ({error.strerror}); choose another --output"
            ) from None

    def part(self, name: str, made_from: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part called `name`: read, if it was made from the same, else computed and written.

        Args:
            name: of the file.
            made_from: everything the result depends on, as plain values.
            compute: makes the result, plain values.
        """
        path = self.folder / f"{name}.json"
        key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
        kept = self._read(path)
        if kept is not None and kept.get("made_from") == key:
            return kept
        result = {"made_from": key, **compute()}
        try:
            write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None
        return json.loads(json.dumps(result))  # the same as when it is read

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None
