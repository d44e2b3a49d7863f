"""`python -m experiments`: run the paper's comparisons on a data set, and report them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddcap.errors import DDCapError
from ddcap.files import write_text
from ddcap.machine import join_processes, leave, own_device
from experiments.charts import save_charts
from experiments.markdown import to_markdown
from experiments.plan import load_plan
from experiments.report import write_report
from experiments.run import ablate, load_ablation


def ablate_command(options: argparse.Namespace) -> int:
    """Train and score the models of a plan; prints the tables."""
    if options.jobs < 1:
        raise DDCapError(f"--jobs {options.jobs}: train at least 1 model at a time")
    plan = load_plan(options.plan, options.output, options.overrides)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    processes, device = join_processes(), own_device(options.device)
    written = ablate(
        plan,
        options.output,
        limit=options.limit,
        fast=options.fast,
        say=say,
        device=device,
        processes=processes,
        jobs=options.jobs,
    )
    if written is None:
        return leave(0)
    results = load_ablation(options.output)
    table = to_markdown(results)
    write_text(Path(options.output) / "results.md", table)
    save_charts(results, options.output)
    print(table)
    return leave(0)


def report_command(options: argparse.Namespace) -> int:
    """Write the page about an ablation; prints its path."""
    print(write_report(options.folder, options.output, photos=options.photos))
    return 0
