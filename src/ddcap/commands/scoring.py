"""Arguments of the commands that score captions, what they mean, and how a result leaves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ddcap.errors import DataError


def scoring_arguments() -> argparse.ArgumentParser:
    """How captions are scored and where the result goes; `scoring_settings` and `report` read them."""
    scoring = argparse.ArgumentParser(add_help=False)
    data = scoring.add_argument_group("data")
    data.add_argument("--data", required=True, help="Karpathy-layout JSON")
    data.add_argument("--split", default="test", choices=["train", "val", "test"], help="default: test")
    group = scoring.add_argument_group("scoring")
    group.add_argument(
        "--fast", action="store_true", help="leave out METEOR and SPICE, which take Java and time"
    )
    group.add_argument("--corenlp", metavar="FOLDER", help="folder of CoreNLP 3.6.0's jars, for SPICE")
    group.add_argument(
        "--clip", metavar="MODEL", help="folder or Hub id of a CLIP, for CLIPScore and RefCLIPScore"
    )
    group.add_argument("--device", default="cpu", help="where to run (default: cpu)")
    group.add_argument(
        "--idf", metavar="FILE", help="CIDEr's document frequencies (default: those of the whole split)"
    )
    group.add_argument("--save-idf", metavar="FILE", help="write the document frequencies used")
    group.add_argument(
        "--tokenization", choices=["ptb-java", "ptb-python"], help="default: ptb-java where Java is"
    )
    output = scoring.add_argument_group("output")
    output.add_argument("--output", help="also write the result, for `ddcap compare`, to this JSON file")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    return scoring


def scoring_settings(options: argparse.Namespace) -> Any:
    """The `ScoringSettings` that the command line names, with its files read.

    Raises:
        DDCapError: if one cannot be used, or a folder to write into does not exist.
    """
    for path in filter(None, (options.output, options.save_idf)):
        if not Path(path).absolute().parent.is_dir():
            raise DataError(f"{path}: its folder does not exist; make it, or choose another place")
    from ddcap.evaluation.document_frequencies import DocumentFrequencies
    from ddcap.evaluation.scoring import ScoringSettings

    clip = None
    if options.clip is not None:
        from ddcap.evaluation.clip_score import ClipScorer

        clip = ClipScorer(options.clip, options.device)
    return ScoringSettings(
        tokenization=options.tokenization,
        document_frequencies=DocumentFrequencies.load(options.idf) if options.idf else None,
        fast=options.fast,
        corenlp=Path(options.corenlp) if options.corenlp else None,
        clip=clip,
    )


def report(evaluation: Any, options: argparse.Namespace) -> int:
    """Write and print an evaluation; returns the exit status: 1 if an image has no caption."""
    from ddcap.evaluation.result import save_evaluation

    if options.output:
        save_evaluation(evaluation, options.output)
    if options.save_idf:
        evaluation.scores.document_frequencies.save(options.save_idf)
    print(json.dumps(evaluation.to_dict(), ensure_ascii=False) if options.json else evaluation.to_text())
    return int(bool(evaluation.failed))
