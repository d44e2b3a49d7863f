r"""Look four times at why diffusion is behind its twin: one trained model of each, on val.

    python -m experiments.analysis g/best twin/best recipes/comparison/g.yaml data.root=path/to/flickr8k \
        --output runs/analysis

writes `analysis.json` and `why.png`. What is finished is kept there, and not computed again. `--looks loss`
takes the first look only, and draws nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddcap.captioner import Captioner
from ddcap.errors import CheckpointError, DDCapError
from ddcap.files import write_text
from ddcap.machine import describe_machine
from ddcap.recipe import load_recipe
from experiments.analysis.chart import save_chart
from experiments.analysis.commitment import commitment
from experiments.analysis.equal_compute import equal_compute, plain_decoding
from experiments.analysis.loss_by_mask import loss_by_mask
from experiments.analysis.reranking import rerank
from experiments.notebook import Notebook
from experiments.split import Split, load_split

FORMAT = "ddcap-analysis-1"
LOOKS = ("loss", "commitment", "compute", "reranking")
_KINDS = {"g": "diffusion", "twin": "autoregressive"}


def load_pair(folders: dict[str, Path], device: str = "cpu") -> dict[str, Captioner]:
    """Row "g" and its "twin".

    Raises:
        CheckpointError: if one is of the other kind, predicts no length, or they have different tokenizers.
    """
    found = {
        row: Captioner.from_pretrained(folder, device, runtime="torch") for row, folder in folders.items()
    }
    for row, captioner in found.items():
        kind = captioner.model.config.model.kind
        if kind != _KINDS[row]:
            raise CheckpointError(
                f"{folders[row]}: is of kind {kind}; give the {_KINDS[row]} model "
                f"{'first' if row == 'g' else 'second'}"
            )
    if not found["g"].model.config.model.length_prediction:
        raise CheckpointError(f"{folders['g']}: predicts no length; give a model of row g")
    if found["g"].tokenizer.to_json() != found["twin"].tokenizer.to_json():
        raise CheckpointError(
            f"{folders['g']} and {folders['twin']}: have different tokenizers, so that their losses do not "
            "compare; give models of one plan"
        )
    return found


def digest(folders: dict[str, Path]) -> str:
    """The same for the same two models."""
    whole = hashlib.sha256()
    for folder in folders.values():
        for name in ("config.json", "model.safetensors"):
            whole.update((folder / name).read_bytes())
    return whole.hexdigest()[:12]


def analyse(
    captioners: dict[str, Captioner],
    split: Split,
    notebook: Notebook,
    say: Callable[[str], None],
    looks: Sequence[str] = LOOKS,
) -> dict[str, Any]:
    """Return what each look finds, as plain values.

    Args:
        captioners: row "g" and its "twin".
        split: of the images.
        notebook: of these two models; holds what is finished.
        say: is told what begins.
        looks: some of LOOKS.
    """
    plain = {row: plain_decoding(captioner, row) for row, captioner in captioners.items()}
    images = [split.name, len(split.records)]

    def part(name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        say(name.replace("_", " "))
        content = notebook.part(name, [name, *images], compute)
        return {key: value for key, value in content.items() if key != "made_from"}

    found: dict[str, Callable[[], dict[str, Any]]] = {
        "loss": lambda: part("loss_by_mask", lambda: loss_by_mask(captioners, split)),
        "commitment": lambda: part("commitment", lambda: commitment(captioners, plain, split)),
        "compute": lambda: equal_compute(captioners, split, notebook, say),
        "reranking": lambda: rerank(captioners, split, plain["g"], notebook, say),
    }
    return {
        "format": FORMAT,
        "split": split.name,
        "pictures": len(split.records),
        "machine": describe_machine(),
        **{look: found[look]() for look in LOOKS if look in looks},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, see above."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.analysis", description="why diffusion is behind its twin"
    )
    parser.add_argument("g", type=Path, help="folder of a diffusion model of row g")
    parser.add_argument("twin", type=Path, help="folder of its autoregressive twin")
    parser.add_argument("recipe", help="of either, for data and encoder")
    parser.add_argument("overrides", nargs="*", help="settings to change in it: section.key=value")
    parser.add_argument("--output", default="runs/analysis", help="folder (default: runs/analysis)")
    parser.add_argument("--limit", type=int, help="look at the first so many images only")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=LOOKS, help="only some (default: all)")
    options = parser.parse_args(arguments)
    folders = {"g": options.g, "twin": options.twin}
    try:
        captioners = load_pair(folders)
        split = load_split(load_recipe(options.recipe, options.overrides), "val", options.limit)
        notebook = Notebook(Path(options.output) / f"parts-{digest(folders)}")

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        results = {
            "models": digest(folders),
            **analyse(captioners, split, notebook, say, options.looks),
        }
        path = Path(options.output) / "analysis.json"
        write_text(path, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
        print(path)
        if all(look in results for look in LOOKS):
            print(save_chart(results, options.output))
    except DDCapError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 1
    return 0
