"""The command line. Results go to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ddcap import __version__
from ddcap.commands import calibrate, caption, data, evaluate, experiments, export, score, serve, train
from ddcap.commands.parser import CommandParser
from ddcap.errors import DDCapError, MissingExtraError, TrainingInterruptedError, remedy


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status, see `run_command`."""
    return run_command(build_parser(), arguments)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 1 a reported error, 128 + n signal n.

    Errors that a user can mend take one line on standard error.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except TrainingInterruptedError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.status
    except DDCapError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "accelerate", "efficientnet_lite_pytorch"):
            raise
        print(f"{parser.prog}: {MissingExtraError('this command', 'train')}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads the output any more; Python would complain at exit
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{parser.prog}: {where}{error.strerror or error}; {remedy(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="ddcap", description="Caption images by discrete diffusion.")
    parser.add_argument("--version", action="version", version=f"ddcap {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=CommandParser)
    for command in (caption, score, data, train, evaluate, calibrate, serve, experiments, export):
        command.add_parsers(commands)
    return parser
