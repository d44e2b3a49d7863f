"""Caption a data set of Hugging Face's `datasets` by its `map`: `caption_batch` is all that it takes.

python examples/datasets_map.py examples/photos captions.parquet
"""

import argparse
from functools import cache
from typing import Any

from datasets import Image, load_dataset

from ddcap import Captioner
from ddcap.data.images import EncodedImage


@cache
def captioner(model: str) -> Captioner:
    """One for each process, also with `num_proc`."""
    return Captioner.from_pretrained(model)


def caption_batch(batch: dict[str, list[Any]], model: str = "default") -> dict[str, list[Any]]:
    """Captions of a batch: columns "file", "caption", "sure", "error".

    Args:
        batch: column "image", not decoded: {"path": ..., "bytes": ...} each.
        model: "default", a folder, or a Hub id.
    """
    pictures = [
        EncodedImage(one["path"] or "image", one["bytes"]) if one["bytes"] else one["path"]
        for one in batch["image"]
    ]
    results = list(captioner(model).caption_each(pictures))
    captions = [result.captions[0] if result.error is None else None for result in results]
    return {
        "file": [one["path"] for one in batch["image"]],
        "caption": [None if one is None else one.text for one in captions],
        "sure": [None if one is None else one.sure for one in captions],
        "error": [result.error for result in results],
    }


def main() -> None:
    """Read a folder of pictures, caption, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("output")
    parser.add_argument("--model", default="default")
    parser.add_argument("--cache", help="folder (default: that of datasets)")
    options = parser.parse_args()
    found = load_dataset("imagefolder", data_dir=options.folder, split="train", cache_dir=options.cache)
    pictures = found.select_columns("image").cast_column("image", Image(decode=False))
    captioned = pictures.map(caption_batch, batched=True, batch_size=64, fn_kwargs={"model": options.model})
    captioned.remove_columns("image").to_parquet(options.output)
    for row in captioned.select_columns(["caption", "error"]):
        print(row["caption"] or row["error"])


if __name__ == "__main__":
    main()
