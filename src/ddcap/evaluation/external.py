"""Metrics that need a Java: METEOR and SPICE."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ddcap.errors import DDCapError, MissingExtraError
from ddcap.evaluation.metrics import MetricScore
from ddcap.evaluation.tokenization import (
    complaint,
    java_command,
    java_environment,
    java_problem,
    java_version,
)

# METEOR 1.5 by the Java program that `pycocoevalcap` brings along, spoken to as it does. Source: Denkowski
# and Lavie, Meteor Universal (2014). The score of a corpus comes from the summed counts of its images: it is
# not the mean of their scores.

_SECONDS_TO_START, _SECONDS_PER_IMAGE = 120, 2  # far over what a slow machine takes; then the program hangs


def meteor(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, MetricScore]:
    """METEOR of tokenised captions.

    Args:
        captions: image id to the tokenised caption.
        references: image id to tokenised human captions; covers `captions`.

    Raises:
        DDCapError: if Java is missing, or the program fails.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.meteor import meteor as program
    except ImportError:
        raise MissingExtraError("METEOR", "eval") from None
    problem = java_problem()
    if problem:
        raise DDCapError(problem)
    jar = Path(program.__file__).parent / program.METEOR_JAR
    # pycocoevalcap's class waits for ever once the program has failed, and takes the user's decimal comma
    command = java_command("-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm")
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            cwd=jar.parent,
            env=java_environment(),
        )
        watchdog = threading.Timer(_SECONDS_TO_START + _SECONDS_PER_IMAGE * len(captions), process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            return {"METEOR": MetricScore(_converse(process.stdin, process.stdout, captions, references))}
        except (OSError, ValueError):  # it has gone, or answers with something that is no number
            process.kill()
            process.wait()
            messages.seek(0)
            reason = complaint(messages.read().decode(errors="replace"))
            raise DDCapError(
                f"METEOR's Java program failed ({reason}); check the Java installation"
            ) from None
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def _converse(
    requests: IO[bytes],
    answers: IO[bytes],
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
) -> float:
    """Ask for the counts of each image, then for the score of all of them; one line, one answer."""

    def ask(request: str) -> str:
        requests.write(f"{request}\n".encode())
        requests.flush()
        answer = answers.readline().decode().strip()
        if not answer:
            raise ValueError("no answer")
        return answer

    counts = [
        ask(" ||| ".join(["SCORE", *map(_plain, references[image]), _plain(caption)]))
        for image, caption in captions.items()
    ]
    ask(" ||| ".join(["EVAL", *counts]))  # the first image's score ...
    for _ in captions:  # ... the others', and at last the score of all
        score = float(answers.readline())
    return score


def _plain(caption: str) -> str:
    return caption.replace("|||", "").replace("  ", " ")


# SPICE by the Java program that `pycocoevalcap` brings along, with CoreNLP's jars from a given folder.
# Source: Anderson et al., SPICE: Semantic Propositional Image Caption Evaluation (2016). The score is the
# mean of the images' F-scores.

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def spice(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], corenlp: str | Path | None
) -> dict[str, MetricScore]:
    """SPICE of tokenised captions.

    The program writes the images' scores by a JavaScript engine that Java dropped with version 15. There,
    unless a `nashorn-core` jar (and the `asm` jars it needs) lies in `corenlp` too, only the mean is read, to
    three decimals.

    Args:
        captions: image id to the tokenised caption.
        references: image id to tokenised human captions; covers `captions`.
        corenlp: folder of CoreNLP 3.6.0's jars; nothing is ever downloaded.

    Raises:
        DDCapError: if Java or a jar is missing, or the program fails.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.spice import spice as program
    except ImportError:
        raise MissingExtraError("SPICE", "eval") from None
    problem = java_problem() or _jar_problem(corenlp)
    if problem or corenlp is None:
        raise DDCapError(str(problem))
    scorer = Path(program.__file__).parent / program.SPICE_JAR
    jars = [str(scorer), *sorted(str(jar.absolute()) for jar in Path(corenlp).glob("*.jar"))]
    has_javascript = java_version() < 15 or any("nashorn" in jar for jar in jars)
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        entries = [
            {"image_id": image, "test": caption, "refs": list(references[image])}
            for image, caption in captions.items()
        ]
        question.write_text(json.dumps(entries), encoding="utf-8")
        arguments = [str(question), *(["-out", str(answer), "-silent"] if has_javascript else [])]
        command = java_command(
            "-Xmx8G", "-cp", os.pathsep.join(jars), "edu.anu.spice.SpiceScorer", *arguments
        )
        done = subprocess.run(
            command, capture_output=True, text=True, env=java_environment(), cwd=folder, check=False
        )
        if done.returncode:
            raise DDCapError(
                f"SPICE's Java program failed ({complaint(done.stderr)}); check the jars in {corenlp}"
            )
        if not has_javascript:
            return {"SPICE": MetricScore(read_printed_mean(done.stdout))}
        try:
            results = json.loads(answer.read_text(encoding="utf-8"))
            scores = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in results}
            each = [scores[image] for image in captions]
        except (OSError, ValueError, KeyError, TypeError) as error:  # a file of another's making
            reason = f"{type(error).__name__}: {error}"
            raise DDCapError(
                f"SPICE's Java program wrote no scores ({reason}); check the jars in {corenlp}"
            ) from None
    return {"SPICE": MetricScore(sum(each) / len(each), each)}


def read_printed_mean(printed: str) -> float:
    """The mean F-score over all tuples, from what the program prints for people.

    Raises:
        DDCapError: if it is not there.
    """
    found = re.search(r"All tuples\s+f-score:\s+([\d.]+)", printed)
    if found is None:
        raise DDCapError("SPICE's Java program printed no score; check the jars in the CoreNLP folder")
    return float(found[1])


def _jar_problem(corenlp: str | Path | None) -> str | None:
    """Say why the folder does not do."""
    if corenlp is None:
        return f"needs CoreNLP 3.6.0; unpack {_ARCHIVE} and give its folder by --corenlp"
    missing = [jar for jar in JARS if not (Path(corenlp) / jar).is_file()]
    if missing:
        return f"{corenlp}: has no {' and no '.join(missing)}; unpack {_ARCHIVE} and give its folder"
    return None
