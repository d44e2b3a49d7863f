"""Caption every image of a folder into a CSV file, skipping images that cannot be read.

python examples/caption_folder.py examples/photos captions.csv
"""

import argparse
import csv
import sys

from ddcap import Captioner
from ddcap.data.images import find_images


def main() -> None:
    """Caption the images, write the file, and report the images that cannot be read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of images")
    parser.add_argument("output", help="CSV file to write")
    parser.add_argument("--model", default="default", help="load this model: 'default', a folder or a Hub id")
    options = parser.parse_args()
    captioner = Captioner.from_pretrained(options.model)
    with open(options.output, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption", "score"])
        for result in captioner.caption_each(find_images([options.folder])):
            if result.error is not None:
                print(result.error, file=sys.stderr)
                continue
            rows.writerow([result.source, result.captions[0].text, f"{result.captions[0].score:.3f}"])


if __name__ == "__main__":
    main()
