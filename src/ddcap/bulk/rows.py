"""Captions as rows of a text file that is gone on with.

Rows are appended as they come. If the program is killed, the last one may be torn: the next job cuts it off.
Nothing else is ever cut; a file with a line that is no row is refused.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ddcap.bulk.claim import Claim
from ddcap.bulk.failed import FailedRows
from ddcap.bulk.names import ImageNames
from ddcap.bulk.output import COLUMNS, CaptionOutput, Row, caption_count, not_ours
from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError
from ddcap.files import replacing

_LONGEST_ROW = 1_000_000  # bytes; names and captions take less
_LONGEST_TORN = 40_000  # bytes of a table's row that has line breaks, in a name and in its error


class TextRows(CaptionOutput):
    """A text file of rows.

    Args:
        path: of the file.
        overwrite: begin anew.
        claim: on the folder that it is part of, if it is: then it is looked at in any case.
        on_failed: told of the images of rows with an error.

    Raises:
        DataError: if the file is there and of something else, or another job has it.
        OSError: if it cannot be read or claimed.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool = False,
        claim: Claim | None = None,
        on_failed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path, self._real, self._overwrite = path, Path(os.path.realpath(path)), overwrite
        if self._real.exists() and not self._real.is_file():
            raise not_ours(path, "is not a plain file", overwrite=False)
        has_content = self._real.exists() and self._real.stat().st_size > 0
        self._own_claim = Claim(path, goes_on=has_content and not overwrite) if claim is None else None
        used = claim or self._own_claim
        assert used is not None
        self._claim = used
        self.names = ImageNames(self._claim.base)
        self._on_failed = on_failed
        self._forget()
        self._file: BinaryIO | None = None
        try:
            if has_content and (claim is not None or not overwrite):
                self._read()
        except BaseException:
            if self._own_claim is not None:
                self._own_claim.release()
            raise

    # What a file of rows is.

    def _split(self, file: BinaryIO) -> Iterator[bytes]:
        """The records, and at last what is behind the last whole one, if there is something."""
        raise NotImplementedError

    def _is_whole(self, record: bytes) -> bool:
        """Return True if a record of `_split` has its end mark."""
        raise NotImplementedError

    def _parse(self, record: bytes, number: int) -> tuple[str, bool] | None:
        """The image of a whole record, and whether it failed; None of a table's first line.

        Raises:
            DataError: if it is no row.
        """
        raise NotImplementedError

    def _missing_end_of(self, rest: bytes) -> bytes | None:
        """Return what the last record lacks if it is whole but for its end mark; None if a kill has torn it.

        Raises:
            DataError: if it is no row of ours.
        """
        raise NotImplementedError

    def _text(self, row: Row) -> bytes:
        raise NotImplementedError

    def _strange_end(self) -> DataError:
        return DataError(
            f"{self.path}: its last line is not a caption row; remove that line, choose another file, or add "
            "--overwrite to replace it"
        )

    def _forget(self) -> None:
        """There is nothing yet."""
        self.done, self._failed = SeenNames(self.names.key), FailedRows(self.names.key)
        self._end, self._missing_end = 0, b""

    def _read(self) -> None:
        with self._real.open("rb") as file:
            for number, record in enumerate(self._split(file), start=1):
                if not self._is_whole(record):
                    missing = self._missing_end_of(record)
                    if missing is None:
                        break
                    self._missing_end = missing
                self._take(self._parse(record + self._missing_end, number), record)
                self._end += len(record)
        self._failed.resolve_all(self.done)

    def _take(self, parsed: tuple[str, bool] | None, record: bytes) -> None:
        if parsed is None:
            return
        name, has_failed = parsed
        if has_failed:
            self._failed.add(name, self._end, _told(record))
            self._on_failed(name)
        else:
            self.done.add(name)

    @property
    def _may_be_torn(self) -> bool:
        """True if there can be a piece of a row: of a job that was killed, or of an earlier version."""
        return self._claim.was_killed or (self._claim.is_new and self._end > 0)

    # How it is written.

    def begin(self, options: Mapping[str, Any]) -> None:
        """See `CaptionOutput`."""
        if self._own_claim is not None:
            self._own_claim.agree(options)
        if self._overwrite or not self._real.exists():
            with open(self._real, "wb"):
                pass  # empty
            self._forget()
        self._open()
        stale = self._failed.stale()
        if len(stale):
            self._rewrite(stale)
            self._forget()
            self._read()  # the rows have other places now

    def _open(self) -> None:
        """With the torn row cut off, and the last one whole."""
        self._file = self._real.open("r+b")
        if self._real.stat().st_size > self._end:
            self._file.truncate(self._end)
        self._file.seek(self._end)
        self._file.write(self._missing_end)
        self._file.flush()
        self._missing_end = b""

    def _rewrite(self, stale: np.ndarray) -> None:
        """Without the rows at the places `stale`, in order."""
        assert self._file is not None
        self._file.close()
        drop, where = iter(stale.tolist()), 0
        next_one = next(drop, None)
        with replacing(self._real) as temporary, temporary.open("wb") as new, self._real.open("rb") as old:
            for record in self._split(old):
                if where == next_one:
                    next_one = next(drop, None)
                else:
                    new.write(record)
                where += len(record)
        self._file = self._real.open("r+b")
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Row, _source: ImageSource | None = None, /) -> None:
        """Append a row; from here on a kill cannot lose it. The very error that is there already is not."""
        assert self._file is not None, "begin() comes first"
        name, text = row["image"], self._text(row)
        if name in self._failed:
            if "error" not in row:
                self._failed.resolve(name)
            elif self._failed.is_told(_told(text)):
                return
            else:
                self._failed.add(name, self._file.tell(), _told(text))
        self._file.write(text)
        self._file.flush()

    def resolve(self, name: str) -> None:
        """See `CaptionOutput`."""
        self._failed.resolve(name)

    def finish(self) -> None:
        """Remove the errors that are out of date."""
        stale = self._failed.stale()
        if len(stale):
            self._rewrite(stale)
            self._forget()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if self._own_claim is not None:
            self._own_claim.release()


class JsonLines(TextRows):
    """One JSON object a line."""

    _BEGINNING = b'{"image": "'
    _KEYS = frozenset((*COLUMNS, "captions"))

    def _split(self, file: BinaryIO) -> Iterator[bytes]:
        return iter(lambda: file.readline(_LONGEST_ROW), b"")

    def _is_whole(self, record: bytes) -> bool:
        return record.endswith(b"\n")

    def _parse(self, record: bytes, number: int) -> tuple[str, bool]:
        try:
            row = json.loads(record)
        except ValueError:
            row = None
        is_row = isinstance(row, dict) and isinstance(row.get("image"), str) and row.keys() <= self._KEYS
        if not is_row or not ("caption" in row or "error" in row):
            raise not_ours(self.path, f"line {number} is not a caption row")
        return row["image"], row.get("error") is not None

    def _missing_end_of(self, rest: bytes) -> bytes | None:
        try:
            json.loads(rest)
        except ValueError:
            beginning = rest[: len(self._BEGINNING)]
            is_row = self._may_be_torn or (self._end > 0 and beginning == self._BEGINNING)
            if is_row and len(rest) < _LONGEST_ROW and self._BEGINNING.startswith(beginning):
                return None
            raise self._strange_end() from None
        return b"\n"

    def _text(self, row: Row) -> bytes:
        text = json.dumps(row, ensure_ascii=False)
        return (text if text.isprintable() else json.dumps(row)).encode() + b"\n"


class CsvRows(TextRows):
    """A table with the columns `COLUMNS`, and more for more captions; lists are separated by spaces."""

    _BEGINNING = ",".join(COLUMNS[:2]).encode()
    _columns: tuple[str, ...] | None = None

    def _split(self, file: BinaryIO) -> Iterator[bytes]:
        record = b""
        for line in iter(lambda: file.readline(_LONGEST_ROW), b""):
            record += line
            if self._is_whole(record) or len(record) >= _LONGEST_ROW:
                yield record
                record = b""
        if record:
            yield record

    def _is_whole(self, record: bytes) -> bool:
        return record.count(b'"') % 2 == 0 and record.endswith(b"\n")  # a name may hold a line break

    def _parse(self, record: bytes, number: int) -> tuple[str, bool] | None:
        fields = _fields(record)
        if number == 1:
            if fields != csv_columns(len(fields) - len(COLUMNS) + 1):
                raise not_ours(self.path, f"its columns are not {', '.join(COLUMNS)}")
            self._columns = fields
            return None
        if self._columns is None or len(fields) != len(self._columns):
            raise not_ours(self.path, f"row {number} is not a caption row")
        return fields[0], bool(fields[-1])

    def _missing_end_of(self, rest: bytes) -> bytes | None:
        if self._columns is not None and rest.count(b'"') % 2 == 0:
            fields = _fields(rest)
            if len(fields) == len(self._columns) and fields[1] and not fields[-1]:
                return b"\n" if rest.endswith(b"\r") else b"\r\n"
        is_ours = self._may_be_torn and len(rest) < _LONGEST_TORN and b"\r\n" not in rest
        if self._columns is None:
            is_ours = is_ours and self._BEGINNING.startswith(rest[: len(self._BEGINNING)])
        elif b"\n" in rest:  # of a name, which is quoted then; else a quote that somebody has left open
            is_ours = is_ours and rest.startswith(b'"')
        if not is_ours:
            raise self._strange_end()
        return None

    def begin(self, options: Mapping[str, Any]) -> None:
        """See `CaptionOutput`."""
        columns = csv_columns(caption_count(options))
        if self._columns not in (None, columns) and not self._overwrite:
            raise DataError(
                f"{self.path}: has columns for another number of captions; give the same --num, choose "
                "another file, or start over with --overwrite"
            )
        self._columns = columns
        super().begin(options)
        assert self._file is not None
        if self._file.tell() == 0:
            self._file.write(_record(columns))
            self._file.flush()

    def _text(self, row: Row) -> bytes:
        assert self._columns is not None
        others = {f"caption_{n}": text for n, text in enumerate(row.get("captions", ()), start=1) if n > 1}
        return _record([_plain({**row, **others}.get(name)) for name in self._columns])


def csv_columns(count: int) -> tuple[str, ...]:
    """The columns of a table with `count` captions of each image."""
    return (*COLUMNS[:2], *(f"caption_{number}" for number in range(2, count + 1)), *COLUMNS[2:])


def _fields(record: bytes) -> tuple[str, ...]:
    rows = list(csv.reader([record.decode("utf-8", "surrogateescape")]))
    return tuple(rows[0]) if len(rows) == 1 else ()


def _record(fields: Any) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(fields)
    return buffer.getvalue().encode("utf-8", "surrogateescape")


def _plain(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list | tuple) else value


def _told(record: bytes) -> str:
    return record.strip().decode("utf-8", "surrogateescape")
