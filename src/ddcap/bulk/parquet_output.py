"""Captions as a folder of Parquet files: a data set for pyarrow, pandas, datasets or polars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddcap.bulk.claim import Claim
from ddcap.bulk.failed import FailedRows
from ddcap.bulk.names import ImageNames, from_text, printable, to_text
from ddcap.bulk.output import COLUMNS, CaptionOutput, Row, caption_count, not_ours
from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError, MissingExtraError
from ddcap.files import replacing

_PART = re.compile(r"part-(\d{5,9})\.parquet")
_UNFINISHED = re.compile(r"\.part-\d{5,9}\.parquet\.\d+-[0-9a-f]{8}\.writing")
_SHIFT = 32  # a row's place: the number of its part, then its number there


class ParquetParts(CaptionOutput):
    """A folder of Parquet files, each of many rows.

    Text in Parquet is UTF-8. An image with another name is named by its file URI.

    Args:
        path: of the folder.
        overwrite: begin anew.
        rows: of a file; a kill loses the rows that are not yet in one, and the next run makes them again.

    Raises:
        DataError: if `path` is something else, or another job has it.
        MissingExtraError: if pyarrow is not installed.
        OSError: if it cannot be read or claimed.
    """

    def __init__(self, path: Path, *, overwrite: bool, rows: int = 2_000) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("writing Parquet", "bulk") from None
        self._pyarrow: Any = pyarrow
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: is a file, but Parquet output is a folder; choose another path")
        path.mkdir(exist_ok=True)
        self.path, self._overwrite, self._limit = path, overwrite, rows
        self._rows: list[Row] = []
        self._count = 1
        self._parts: dict[int, Path] = {}
        self._claim = Claim(path, goes_on=any(path.glob("*.parquet")) and not overwrite)
        self._base = self._claim.base
        self.names = ImageNames(self._base)
        self.done, self._failed = SeenNames(self.names.key), FailedRows(self.names.key)
        try:
            for part in sorted(path.glob("*.parquet")):
                self._look_at(part)
            if not overwrite:
                self._read_all()
        except BaseException:
            self._claim.release()
            raise

    def _look_at(self, part: Path) -> None:
        """Refuse what is no part of ours: such a folder is neither added to nor removed from."""
        found = _PART.fullmatch(part.name)
        try:
            columns = tuple(self._pyarrow.parquet.read_schema(part).names)
        except (self._pyarrow.ArrowException, OSError):
            columns = ()
        if found is None or columns not in (_columns(1), _columns(2)):
            raise not_ours(self.path, f"{part.name} in it is not of captions", overwrite=False)
        self._parts[int(found[1])] = part
        self._count = 1 if columns == _columns(1) else 2

    def _read_all(self) -> None:
        self.done, self._failed = SeenNames(self.names.key), FailedRows(self.names.key)
        for number, part in sorted(self._parts.items()):
            self._read(number, part)
        self._failed.resolve_all(self.done)

    def _read(self, number: int, part: Path) -> None:
        table = self._pyarrow.parquet.read_table(part, columns=["image", "error"])
        pairs = zip(table.column("image").to_pylist(), table.column("error").to_pylist(), strict=True)
        for row, (image, error) in enumerate(pairs):
            name = from_text(image)
            if error is None:
                self.done.add(name)
            else:
                self._failed.add(name, number << _SHIFT | row, f"{image}\n{error}")

    def begin(self, options: Mapping[str, Any]) -> None:
        """See `CaptionOutput`."""
        count = min(2, caption_count(options))
        self._claim.agree(options)
        if self._parts and not self._overwrite and count != self._count:
            raise DataError(
                f"{self.path}: was made with another number of captions; give the same --num, choose another "
                "folder, or start over with --overwrite"
            )
        self._count = count
        for path in self.path.iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
        if self._overwrite:
            for part in self._parts.values():
                part.unlink()
            self._parts.clear()
        stale = self._failed.stale()
        if len(stale):
            self._rewrite(stale)
            self._read_all()  # the rows have other places now

    def write(self, row: Row, _source: ImageSource | None = None, /) -> None:
        """Take a row; every `rows` of them go to disk."""
        row = self._as_text(row)
        name = from_text(row["image"])
        if name in self._failed:
            told = f"{row['image']}\n{row.get('error')}"
            if "error" not in row:
                self._failed.resolve(name)
            elif self._failed.is_told(told):
                return
            else:
                self._failed.add(name, self._next() << _SHIFT | len(self._rows), told)
        self._rows.append(row)
        if len(self._rows) >= self._limit:
            self._flush()

    def resolve(self, name: str) -> None:
        """See `CaptionOutput`."""
        self._failed.resolve(name)

    def finish(self) -> None:
        """Write what is left, and remove the errors that are out of date."""
        self._flush()
        self._rewrite(self._failed.stale())
        self._failed = FailedRows(self.names.key)

    def close(self) -> None:
        """Write what is left."""
        try:
            self._flush()
        finally:
            self._claim.release()

    def _as_text(self, row: Row) -> Row:
        """With UTF-8 only."""
        plain = {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}
        return {**plain, "image": to_text(row["image"], self._base)}

    def _next(self) -> int:
        return max(self._parts, default=-1) + 1

    def _flush(self) -> None:
        if not self._rows:
            return
        text, number = self._pyarrow.string(), self._pyarrow.float32()
        kinds = {"sure": number, "faithful": number, "known": number}
        kinds |= dict.fromkeys(("doubtful", "captions"), self._pyarrow.list_(text))
        columns = _columns(self._count)
        schema = self._pyarrow.schema([(name, kinds.get(name, text)) for name in columns])
        rows = [{name: row.get(name) for name in columns} for row in self._rows]
        part = self.path / f"part-{self._next():05}.parquet"
        self._write(part, self._pyarrow.Table.from_pylist(rows, schema=schema))
        self._parts[self._next()] = part
        self._rows.clear()

    def _write(self, part: Path, table: Any) -> None:
        with replacing(part) as temporary:
            self._pyarrow.parquet.write_table(table, temporary)

    def _rewrite(self, stale: np.ndarray) -> None:
        """Without the rows at the places `stale`."""
        numbers = stale >> np.uint64(_SHIFT)
        rows = stale & np.uint64((1 << _SHIFT) - 1)
        for number in np.unique(numbers).tolist():
            part = self._parts[number]
            table = self._pyarrow.parquet.read_table(part)
            stays = np.ones(len(table), dtype=bool)
            stays[rows[numbers == number]] = False
            if stays.any():
                self._write(part, table.filter(self._pyarrow.array(stays)))
            else:
                part.unlink()
                del self._parts[number]


def _columns(count: int) -> tuple[str, ...]:
    """Of the files; two and more captions of each image are a list."""
    return (*COLUMNS[:2], *(("captions",) if count > 1 else ()), *COLUMNS[2:])
