"""Tell whether captions of the example photographs name what they show.

    python benchmarks/naming.py [MODEL]

A caption is right if one of its words stands in the photograph's list in examples/accepted_nouns.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ddcap import Captioner

EXAMPLES = Path(__file__).parents[1] / "examples"


def named(captioner: Captioner) -> dict[str, tuple[str, bool]]:
    """Photograph to its caption and whether it is named right."""
    accepted = json.loads((EXAMPLES / "accepted_nouns.json").read_text(encoding="utf-8"))
    captions = captioner([EXAMPLES / name for name in accepted])
    return {
        name: (caption.text, bool(set(nouns) & set(caption.text.split())))
        for (name, nouns), caption in zip(accepted.items(), captions, strict=True)
    }


def main() -> None:
    """Print a line for each photograph, then how many are right."""
    captioner = Captioner.from_pretrained(sys.argv[1] if len(sys.argv) > 1 else "default")
    result = named(captioner)
    for name, (text, is_right) in result.items():
        print(f"{'right' if is_right else 'wrong'}  {name:24} {text}")
    print(f"{sum(is_right for _, is_right in result.values())} of {len(result)} named right")


if __name__ == "__main__":
    main()
