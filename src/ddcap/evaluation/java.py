"""The Java that METEOR, SPICE and Stanford's tokenizer need: is it there, and how it is started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import lru_cache

INSTALL = "apt install default-jre-headless (macOS: brew install openjdk)"
# METEOR cannot read its own decimals if they have a comma; in the locale C, Java 17 and older read ASCII
_ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")


def java_problem() -> str | None:
    """Why Java cannot be used, with the line that installs it; None where it can."""
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
    """What Java complained about: the line that names the error, else the last one."""
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
