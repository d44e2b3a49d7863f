import gzip
import json

import pytest

from ddcap.data.records import load_texts
from ddcap.errors import DataError

CAPTIONS = ["A dog runs .", "Two people talk ."]


@pytest.mark.parametrize("layout", ["lines", "list", "lists by image", "packed"])
def test_every_layout_gives_the_same_captions(tmp_path, layout):
    if layout == "lines":
        path = tmp_path / "captions.txt"
        path.write_text("\n".join([CAPTIONS[0], "", CAPTIONS[1], ""]))
    elif layout == "packed":
        path = tmp_path / "captions.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"7": CAPTIONS}).encode()))
    else:
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(CAPTIONS if layout == "list" else {"1": CAPTIONS[:1], "2": CAPTIONS[1:]}))
    records = load_texts(path)
    assert [caption for record in records for caption in record.captions] == CAPTIONS
    assert len({record.image_id for record in records}) == 2
    assert {record.split for record in records} == {"train"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", None, "no such file"),
        ("empty.txt", b"\n\n", "contains no caption"),
        ("numbers.json", b"[1, 2]", "contains no caption"),
        ("broken.json", b"{", "cannot be read"),
        ("cut.json.gz", gzip.compress(b'["a dog"]', mtime=0)[:-4], "cannot be read"),
        ("image.txt", b"\xff\xd8\xff", "cannot be read"),
    ],
)
def test_unusable_files_are_one_line(tmp_path, name, content, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        load_texts(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
