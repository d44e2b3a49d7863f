"""Words of captions for scoring: Stanford's PTB tokeniser where Java is, else its rules in Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ddcap.errors import DDCapError, MissingExtraError

# The Java that METEOR, SPICE and Stanford's tokenizer need: is it there, and how it is started.

INSTALL = "apt install default-jre-headless (macOS: brew install openjdk)"
# METEOR cannot read its own decimals if they have a comma; in the locale C, Java 17 and older read ASCII
_ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")


def java_problem() -> str | None:
    """Say why Java cannot be used, with the line that installs it; None where it can."""
    return _version(shutil.which("java"))[1]


def java_version() -> int:
    """Major version of the Java on the path (8, 17, ...); 0 where there is none that runs."""
    return _version(shutil.which("java"))[0]


def java_command(*arguments: str) -> list[str]:
    """The command line of a Java program that reads and writes UTF-8 and English numbers."""
    return ["java", *_ENGLISH, *arguments]


def java_environment() -> dict[str, str]:
    """The environment to run it in: no locale of the user's can change the numbers."""
    return {**os.environ, "LC_ALL": "C"}


def complaint(messages: str) -> str:
    """Find Java's complaint: the line that names the error, else the last one."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b", line)]
    return next(iter([*errors, *lines[::-1]]), "no message")


@lru_cache
def _version(path: str | None) -> tuple[int, str | None]:
    """Major version and problem of the Java at `path`."""
    if path is None:
        return 0, f"Java is not on the path; run: {INSTALL}"
    # macOS has a program called java that only says there is none, so it has to be run to be believed
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, f"{path} does not run ({error}); run: {INSTALL}"
    if done.returncode:
        return 0, f"{path} does not run ({complaint(done.stderr)}); run: {INSTALL}"
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    return int(found[1]) if found else 0, None


# PTB tokenisation of captions for scoring: Stanford's program if Java is there, else its rules in Python.

Tokenization = Literal["ptb-java", "ptb-python"]
Captions = Mapping[str, Sequence[str]]
"""image id to captions."""

# what pycocoevalcap removes after tokenising, and ", which the Java program writes as one of the others
_PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
# the Java program writes brackets like this, and pycocoevalcap, which looks for capitals, leaves them in
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_ASCII = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "..."})  # noqa: RUF001
_CLITIC = re.compile(r"(?<=[a-z0-9])('s|'m|'d|'re|'ve|'ll|n't)(?![\w'])")
_SPLIT_WORDS = _BRACKETS | {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta"}
_ABBREVIATION = r"(?:mr|mrs|ms|dr|jr|sr|st|vs|ave|blvd|rd|mt|etc)\.|(?<!\w)(?:[a-z]\.)+"
_CONTRACTION = r"'n'|(?:'s|'m|'d|'re|'ve|'ll|n't)(?!\w)"
_NUMBER = r"\d+(?:[:,]\d+)+"
_WORD = re.compile(rf"{_ABBREVIATION}|{_CONTRACTION}|{_NUMBER}|\w+(?:[-./']\w+)*|\.{{3}}|-+|[!?]{{2,}}|\S")


def tokenize(
    captions: Captions, how: Tokenization | None = None
) -> tuple[dict[str, list[str]], Tokenization]:
    """Captions as lower-case words separated by spaces, without punctuation.

    Args:
        captions: image id to captions.
        how: None takes Java where there is one that runs.

    Returns:
        The tokenised captions, and which tokenisation was used.

    Raises:
        MissingExtraError: if Java is to be used and pycocoevalcap is not installed.
        DDCapError: if Java fails.
    """
    how = how or ("ptb-python" if java_problem() else "ptb-java")
    if how == "ptb-java":
        return _tokenize_java(captions), how
    return {image: [_tokenize_python(caption) for caption in texts] for image, texts in captions.items()}, how


def tokenize_with_references(
    predictions: Mapping[str, str], references: Captions, how: Tokenization | None = None
) -> tuple[dict[str, str], dict[str, list[str]], Tokenization]:
    """Predictions and references tokenised at once: of what it takes, Java's start takes the longest.

    Args:
        predictions: image id to caption; every one has references.
        references: image id to captions, also of images without a prediction.
        how: see `tokenize`.

    Returns:
        Tokenised predictions, tokenised references, and which tokenisation was used.

    Raises:
        MissingExtraError: if Java is to be used and pycocoevalcap is not installed.
        DDCapError: if Java fails.
    """
    own = {image: [predictions[image]] if image in predictions else [] for image in references}
    together, used = tokenize({image: [*own[image], *texts] for image, texts in references.items()}, how)
    captions = {image: together[image][0] for image in predictions}
    return captions, {image: texts[len(own[image]) :] for image, texts in together.items()}, used


def _tokenize_java(captions: Captions) -> dict[str, list[str]]:
    try:
        from pycocoevalcap.tokenizer import ptbtokenizer
    except ImportError:
        raise MissingExtraError("scoring captions", "eval") from None
    # pycocoevalcap's own call, but with its exit status looked at and its chatter kept off the terminal
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    program = "edu.stanford.nlp.process.PTBTokenizer"
    command = java_command("-cp", str(jar), program, "-preserveLines", "-lowerCase")
    lines = "".join(f"{_one_line(text)}\n" for texts in captions.values() for text in texts)
    problem = java_problem()
    if problem:
        raise DDCapError(f"tokenization ptb-java: {problem}, or use ptb-python")
    done = subprocess.run(
        command, input=lines.encode(), capture_output=True, env=java_environment(), check=False
    )
    if done.returncode:
        reason = complaint(done.stderr.decode(errors="replace"))
        raise DDCapError(
            f"Java's PTB tokenizer failed ({reason}); check the Java installation, or remove it from the path"
        )
    tokenized = iter(done.stdout.decode().split("\n"))
    return {
        image: [_without_punctuation(next(tokenized).split()) for _ in texts]
        for image, texts in captions.items()
    }


def _tokenize_python(caption: str) -> str:
    text = _CLITIC.sub(r" \1", _one_line(caption).lower().translate(_ASCII))
    words = [_SPLIT_WORDS.get(word, word) for word in _WORD.findall(text)]
    return _without_punctuation(words)


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)


def _one_line(caption: str) -> str:
    # the Java program keeps lines apart, so a line break inside a caption would shift all that follow
    return " ".join(caption.split())
