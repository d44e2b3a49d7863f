"""The mean of two models' weights, for trainings of which one went on from the other.

    python recipes/default/average.py FIRST SECOND OUTPUT

Source: Wortsman et al. 2022, "Model soups". The first model's tokenizer, concepts and settings are kept.
"""

from __future__ import annotations

import sys

import torch

from ddcap import Captioner


def main() -> None:
    """Read two model folders, write a third."""
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    first, second = (Captioner.from_pretrained(folder, runtime="torch") for folder in sys.argv[1:3])
    ours, theirs = first.model.state_dict(), second.model.state_dict()
    if {name: value.shape for name, value in ours.items()} != {
        name: value.shape for name, value in theirs.items()
    }:
        sys.exit(
            f"{sys.argv[1]} and {sys.argv[2]} are of different shapes; give two models of one kind and size"
        )
    first.model.load_state_dict(
        {
            name: (value + theirs[name]) / 2 if value.is_floating_point() else value
            for name, value in ours.items()
        }
    )
    first.save(sys.argv[3], torch.float16)


if __name__ == "__main__":
    main()
