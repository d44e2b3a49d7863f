"""METEOR 1.5 by the Java program that `pycocoevalcap` brings along, spoken to as it does.

Source: Denkowski and Lavie, Meteor Universal (2014). The score of a corpus comes from the summed counts of
its images: it is not the mean of their scores.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from ddcap.errors import DDCapError, MissingExtraError
from ddcap.evaluation.java import complaint, java_command, java_environment, java_problem
from ddcap.evaluation.metrics import MetricScore

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
            raise DDCapError(f"METEOR's Java program failed ({reason}); mend the Java installation") from None
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
