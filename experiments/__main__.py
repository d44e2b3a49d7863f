"""`python -m experiments`, in the repository's folder."""

import argparse
import sys

from ddcap.commands import run_command
from ddcap.commands.experiments import add_parsers

parser = argparse.ArgumentParser(
    prog="python -m experiments", description="Run the paper's comparisons on a data set, and report them."
)
add_parsers(parser.add_subparsers(required=True, metavar="command"))

if __name__ == "__main__":
    sys.exit(run_command(parser))
