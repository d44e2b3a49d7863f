"""Caption a data set of Hugging Face `datasets` with `map` and the function `caption_batch`.

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
    """Load the model once per process, also with `num_proc`."""
    return Captioner.from_pretrained(model)


def caption_batch(batch: dict[str, list[Any]], model: str = "default") -> dict[str, list[Any]]:
    """Caption a batch; returns the columns "file", "caption", "sure", "error".

    Args:
        batch: column "image" of encoded images, each {"path": ..., "bytes": ...}.
        model: "default", a folder, or a Hub id.
    """
    images = [
        EncodedImage(one["path"] or "image", one["bytes"]) if one["bytes"] else one["path"]
        for one in batch["image"]
    ]
    results = list(captioner(model).caption_each(images))
    captions = [result.captions[0] if result.error is None else None for result in results]
    return {
        "file": [one["path"] for one in batch["image"]],
        "caption": [None if one is None else one.text for one in captions],
        "sure": [None if one is None else one.sure for one in captions],
        "error": [result.error for result in results],
    }


def main() -> None:
    """Read a folder of images, caption them, and write a Parquet file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("output", help="Parquet file to write")
    parser.add_argument("--model", default="default", help="load this model: 'default', a folder or a Hub id")
    parser.add_argument("--cache", help="cache data in this folder (default: the folder of datasets)")
    options = parser.parse_args()
    found = load_dataset("imagefolder", data_dir=options.folder, split="train", cache_dir=options.cache)
    images = found.select_columns("image").cast_column("image", Image(decode=False))
    captioned = images.map(caption_batch, batched=True, batch_size=64, fn_kwargs={"model": options.model})
    captioned.remove_columns("image").to_parquet(options.output)
    for row in captioned.select_columns(["caption", "error"]):
        print(row["caption"] or row["error"])


if __name__ == "__main__":
    main()
