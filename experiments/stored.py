"""A scored row read from its JSON, with the images and human captions that it was scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddcap.data.records import CaptionedImage, load_records
from ddcap.errors import DataError
from ddcap.evaluation.run import references_digest
from ddcap.files import read_json

_REMEDY = (
    "give a file of the `results/` of `python -m experiments ablate`, or one written by "
    "`ddcap evaluate --output`"
)


@dataclass(frozen=True)
class Stored:
    """One row's captions.

    Attributes:
        name: of the file, without its end.
        captions: image id to caption.
        records: the captioned images with their human captions, in the order of the split.
    """

    name: str
    captions: dict[str, str]
    records: list[CaptionedImage]

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        """Image id to human captions."""
        return {record.image_id: record.captions for record in self.records}


def load_stored(paths: Sequence[str | Path], json_path: str | Path, folder: str | Path) -> list[Stored]:
    """Read scored rows; they have to be of the same images.

    Args:
        paths: JSON files of `python -m experiments ablate` (in its `results/`) or `ddcap evaluate --output`.
        json_path: the data that they were scored on.
        folder: of its images, which are not opened.

    Raises:
        DataError: if a file is something else, or of other human captions or images.
    """
    everything = load_records(json_path, folder)
    stored: list[Stored] = []
    for path in paths:
        content = read_json(path, _REMEDY)
        captions = content.get("predictions") if isinstance(content, dict) else None
        if not isinstance(captions, dict) or not captions:
            raise DataError(f"{path}: holds no predictions; {_REMEDY}")
        whole = [record for record in everything if record.split == content.get("split")]
        records = [record for record in whole if record.image_id in captions]
        # `ablate --limit` tells only of the first images, `ddcap evaluate --limit` of the whole split
        digests = [
            references_digest({one.image_id: one.captions for one in part}) for part in (whole, records)
        ]
        if content.get("references") not in digests or len(records) != len(captions):
            raise DataError(
                f"{path}: was scored on other data than {json_path}; give the JSON that it was scored on"
            )
        if stored and captions.keys() != stored[0].captions.keys():
            raise DataError(f"{path}: has other images than {paths[0]}; give results of the same ones")
        stored.append(Stored(Path(path).stem, captions, records))
    return stored
