"""A path to the output that it names."""

from __future__ import annotations

from pathlib import Path

from ddcap.bulk.output import CaptionOutput
from ddcap.bulk.parquet_output import ParquetParts
from ddcap.bulk.rows import CsvRows, JsonLines
from ddcap.errors import DataError


def open_output(path: str | Path, *, overwrite: bool = False) -> CaptionOutput:
    """The output that the ending of `path` names: .jsonl, .csv or .parquet. For tars, see `TarOutput`.

    Args:
        path: of the file; its folder has to exist.
        overwrite: begin anew, else go on with what is there.

    Raises:
        DataError: if the ending is another one, the folder does not exist, the file is of something else, or
            another job writes to it.
        MissingExtraError: if a package for it is not installed.
        OSError: if it cannot be read or claimed.
    """
    path = Path(path)
    kinds = {".jsonl": JsonLines, ".csv": CsvRows, ".parquet": ParquetParts}
    if path.suffix.lower() not in kinds:
        raise DataError(f"{path}: unknown file type; use {', '.join(kinds)}, or FOLDER/ for tar files")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: its folder does not exist; create it, or choose another path")
    return kinds[path.suffix.lower()](path, overwrite=overwrite)
