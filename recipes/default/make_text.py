"""Captions without images for the default: COCO's and Flickr30k's, and COCO's with rarer things in them.

    python recipes/default/make_text.py COCO.json.gz FLICKR30K.json.gz OUT [--without HELD_OUT.json]

Both are {image: [captions]}. `--without` is a Karpathy JSON whose images' captions are left out. A class
name that captions seldom or never use (koala, palace) is put in the place of one of its kind that they often
use (bear, building), so that a model learns to say it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path

KINDS = {
    "dog cat bear horse cow sheep elephant": """koala panda pig hedgehog bison fox wolf rabbit squirrel monkey
    lion tiger leopard goat llama camel kangaroo hippo buffalo deer hamster mouse otter beaver gorilla donkey
    ram bull calf kitten puppy turtle lizard frog crab snake""",
    "bird": """owl parrot hen chicken rooster duck swan goose pelican flamingo penguin eagle hawk vulture
    peacock ostrich hummingbird kingfisher robin crow pigeon heron stork quail partridge""",
    "building house tower": "palace castle church temple monastery lighthouse mosque barn greenhouse",
    "plane": "rocket shuttle balloon parachute",
    "boat": "ship canoe kayak sailboat yacht ferry submarine gondola",
    "truck car bus": "tractor ambulance jeep taxi van tank scooter tricycle",
    "pizza sandwich cake": "burger burrito bagel pretzel spaghetti salad",
    "apple banana orange": "strawberry lemon pineapple mushroom cucumber corn cabbage",
    "flower": "daisy rose sunflower tulip orchid lily",
    "cup": "mug espresso teapot pitcher",
    "dog": "spider beetle butterfly bee snail dragonfly",
    "laptop phone": "typewriter printer camera keyboard",
    "guitar bat racquet": "violin drum trumpet saxophone flute harp",
    "man": "astronaut cowboy groom diver",
}
GROUPS = 80  # images' captions that each of them is put into


def main() -> None:
    """Read, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("coco")
    parser.add_argument("flickr30k")
    parser.add_argument("out")
    parser.add_argument("--more", help="further captions of COCO images, {image: [captions]}")
    parser.add_argument("--without", help="Karpathy JSON of images whose captions are left out")
    options = parser.parse_args()
    held_out = set()
    if options.without:
        images = json.loads(Path(options.without).read_text(encoding="utf-8"))["images"]
        held_out = {str(image["cocoid"]) for image in images}
    coco = read(options.coco)
    if options.more:
        coco = {**read(options.more), **coco}
    groups = [captions for image, captions in coco.items() if image.lstrip("0") not in held_out]
    out = Path(options.out)
    write(out / "text_coco.json", groups)
    write(out / "text_flickr30k.json", list(read(options.flickr30k).values()))
    write(out / "text_names.json", with_rarer(groups))


def with_rarer(groups: list[list[str]]) -> list[list[str]]:
    """Groups of captions in which a frequent word has become a rarer one of its kind."""
    generator = random.Random(0)
    made = []
    for frequent, rarer in KINDS.items():
        pattern = re.compile(rf"\b({'|'.join(frequent.split())})(s?)\b", re.IGNORECASE)
        fitting = [group for group in groups if sum(bool(pattern.search(text)) for text in group) >= 3]
        for word in rarer.split():
            for group in generator.sample(fitting, min(GROUPS, len(fitting))):
                made.append([with_article(pattern.sub(rf"{word}\2", text)) for text in group])
    return made


def with_article(text: str) -> str:
    """The same with a or an as the word behind it has it."""
    text = re.sub(r"\ba (?=[aeio]|u[^ns])", "an ", text, flags=re.IGNORECASE)
    return re.sub(r"\ban (?=[bcdfghjklmnpqrstvwxyz])", "a ", text, flags=re.IGNORECASE)


def read(path: str) -> dict[str, list[str]]:
    """{image: [captions]} of a JSON, unpacked if it is a .gz."""
    content = Path(path).read_bytes()
    found: dict[str, list[str]] = json.loads(gzip.decompress(content) if path.endswith(".gz") else content)
    return found


def write(path: Path, groups: list[list[str]]) -> None:
    """One JSON list of lists."""
    path.write_text(json.dumps(groups), encoding="utf-8")
    print(f"{path}: captions of {len(groups)} images")


if __name__ == "__main__":
    main()
