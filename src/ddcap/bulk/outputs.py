"""Where captions of very many pictures go: a file that is gone on with.

Rows are written as they come. If the program is killed, the file's last row may be torn: opening it again
cuts the torn row off, and says which pictures are done.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddcap.bulk.walk import SeenNames
from ddcap.data.images import ImageSource
from ddcap.errors import DataError, MissingExtraError
from ddcap.files import replacing

COLUMNS = ("image", "caption", "sure", "faithful", "known", "doubtful", "guess", "why", "error")
Row = Mapping[str, Any]


class CaptionOutput:
    """Takes rows; `done` are the pictures that it has a row of already."""

    done: SeenNames

    def complete(self, tar: str) -> int | None:
        """Captions of a tar of pictures that need not be read again; None if it has to be."""
        del tar
        return None

    def write(self, row: Row, source: ImageSource | None = None, /) -> None:
        """Take a row; "image" names the picture, `source` is it where there is one."""
        raise NotImplementedError

    def finish(self) -> None:
        """All pictures have come."""

    def close(self) -> None:
        """Write what is left."""
        raise NotImplementedError


def open_output(path: str | Path, *, overwrite: bool = False) -> CaptionOutput:
    """The output that the ending of `path` names: .jsonl, .csv or .parquet. For tars, see `TarOutput`.

    Args:
        path: of the file; its folder has to exist.
        overwrite: begin anew, else go on with what is there.

    Raises:
        DataError: if the ending is another one, the folder does not exist, or the file is of something else.
        MissingExtraError: if a package for it is not installed.
    """
    path = Path(path)
    kinds = {".jsonl": JsonLines, ".csv": CsvRows, ".parquet": ParquetParts}
    if path.suffix.lower() not in kinds:
        raise DataError(f"{path}: unknown file type; use {', '.join(kinds)}, or FOLDER/ for tar files")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: its folder does not exist; create it, or choose another path")
    return kinds[path.suffix.lower()](path, overwrite=overwrite)


class _Rows(CaptionOutput):
    """A text file of rows that are appended.

    Args:
        path: of the file.
        overwrite: begin anew.

    Raises:
        DataError: if the file is there and of something else.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        self.path, self.done = path, SeenNames()
        if overwrite and path.exists():
            path.unlink()
        end = 0
        if path.exists():
            with path.open("rb") as file:
                for end, image in self._complete(file):  # noqa: B007 (the last one is wanted)
                    if image is not None:
                        self.done.add(image)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(end)  # what a kill has torn
        self._file.seek(end)

    def _complete(self, file: io.BufferedReader) -> Iterator[tuple[int, str | None]]:
        """Where each complete row ends, and which picture it is of."""
        raise NotImplementedError

    def _text(self, row: Row) -> str:
        raise NotImplementedError

    def write(self, row: Row, _source: ImageSource | None = None, /) -> None:
        """Append a row; from here on a kill cannot lose it."""
        self._file.write(self._text(row).encode())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonLines(_Rows):
    """One JSON object a line."""

    def _complete(self, file: io.BufferedReader) -> Iterator[tuple[int, str | None]]:
        end = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                image = json.loads(line)["image"]
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"{self.path}: line {number} is not a caption row; choose another file, or add "
                    "--overwrite"
                ) from None
            end += len(line)
            yield end, image

    def _text(self, row: Row) -> str:
        text = json.dumps(row, ensure_ascii=False)
        return (text if text.isprintable() else json.dumps(row)) + "\n"


class CsvRows(_Rows):
    """A table with the columns `COLUMNS`; lists are separated by spaces."""

    def _complete(self, file: io.BufferedReader) -> Iterator[tuple[int, str | None]]:
        end, record = 0, b""
        for line in file:
            record += line
            if record.count(b'"') % 2 or not record.endswith(b"\n"):
                continue  # goes on: a name may hold a line break
            (fields,) = csv.reader([record.decode("utf-8", "surrogateescape")])
            if end == 0 and tuple(fields) != COLUMNS:
                raise DataError(
                    f"{self.path}: its columns are not {', '.join(COLUMNS)}; choose another file, or add "
                    "--overwrite"
                )
            end += len(record)
            yield end, (fields[0] if end > len(record) else None)
            record = b""

    def _text(self, row: Row) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        if self._file.tell() == 0:
            writer.writerow(COLUMNS)
        writer.writerow([_plain(row.get(name)) for name in COLUMNS])
        return buffer.getvalue()

    def write(self, row: Row, _source: ImageSource | None = None, /) -> None:
        """Append a row; from here on a kill cannot lose it."""
        self._file.write(self._text(row).encode("utf-8", "surrogateescape"))
        self._file.flush()


def _plain(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list | tuple) else value


class ParquetParts(CaptionOutput):
    """A folder of Parquet files, each of many rows: a data set for pyarrow, pandas, datasets or polars.

    Args:
        path: of the folder.
        overwrite: begin anew.
        rows: of a file; a kill loses the rows that are not yet in one, and the next run makes them again.

    Raises:
        DataError: if `path` is something else.
        MissingExtraError: if pyarrow is not installed.
    """

    def __init__(self, path: Path, *, overwrite: bool, rows: int = 2_000) -> None:
        try:
            import pyarrow.parquet
        except ImportError:
            raise MissingExtraError("writing Parquet", "bulk") from None
        if path.exists() and not path.is_dir():
            raise DataError(f"{path}: is a file, but Parquet output is a folder; choose another path")
        path.mkdir(exist_ok=True)
        self.path, self.done, self._limit = path, SeenNames(), rows
        self._rows: list[Row] = []
        parts = sorted(path.glob("part-*.parquet"))
        self._number = 0
        for part in parts:
            if overwrite:
                part.unlink()
                continue
            self._number = int(part.stem.removeprefix("part-")) + 1
            for image in pyarrow.parquet.read_table(part, columns=["image"]).column("image").to_pylist():
                self.done.add(image)

    def write(self, row: Row, _source: ImageSource | None = None, /) -> None:
        """Take a row; every `rows` of them go to disk."""
        self._rows.append(row)
        if len(self._rows) >= self._limit:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._rows:
            return
        kinds = {"sure": pyarrow.float32(), "faithful": pyarrow.float32(), "known": pyarrow.float32()}
        kinds["doubtful"] = pyarrow.list_(pyarrow.string())
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
        rows = [{name: row.get(name) for name in COLUMNS} for row in self._rows]
        with replacing(self.path / f"part-{self._number:05}.parquet") as temporary:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), temporary)
        self._number += 1
        self._rows.clear()
