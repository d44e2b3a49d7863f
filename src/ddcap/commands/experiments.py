"""`ddcap ablate` and `ddcap report`: run the paper's comparisons on a data set and report them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ddcap.errors import DDCapError


def add_parsers(commands: Any) -> None:
    """Add the commands to an argparse subparsers object."""
    ablate = commands.add_parser(
        "ablate", help="train and score the models of a plan: Table 1, sweeps and infilling"
    )
    ablate.add_argument("plan", help="YAML file, see recipes/ablation/plan.yaml")
    ablate.add_argument(
        "overrides", nargs="*", help="settings to change in every recipe, as section.key=value"
    )
    ablate.add_argument(
        "--output", default="runs/ablation", help="write into this folder (default: runs/ablation)"
    )
    ablate.add_argument("--limit", type=int, help="score on the first LIMIT images only")
    ablate.add_argument("--fast", action="store_true", help="skip METEOR and SPICE, which need Java")
    ablate.add_argument(
        "--device", default="cpu", help="caption on this device, for example cuda (default: cpu)"
    )
    ablate.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="train this many models at a time, each in its own process (default: 1)",
    )
    ablate.set_defaults(run=_ablate)

    report = commands.add_parser("report", help="write an HTML page about an ablation")
    report.add_argument("folder", help="output folder of `ddcap ablate`, or its metrics.json")
    report.add_argument(
        "--output",
        default="report.html",
        help="write this page (.html), or the tables only (.md) (default: report.html)",
    )
    report.add_argument(
        "--photos", type=int, default=24, help="show this many test photographs (default: 24)"
    )
    report.set_defaults(run=_report)


def _find_experiments() -> None:
    """Make `experiments/` importable, from the checkout of the package or the current folder.

    Raises:
        DDCapError: if there is no checkout; the wheel holds the library only.
    """
    if importlib.util.find_spec("experiments") is not None:
        return
    own = Path(__file__).resolve().parents[3]
    for folder in (own, Path.cwd(), *Path.cwd().parents):
        if (folder / "experiments" / "plan.py").is_file() and (folder / "src" / "ddcap").is_dir():
            sys.path.insert(0, str(folder))
            return
    raise DDCapError(
        "the experiments are not part of the installed package; clone the repository and run this command "
        "inside it"
    )


def _ablate(options: argparse.Namespace) -> int:
    if options.jobs < 1:
        raise DDCapError(f"--jobs {options.jobs}: train at least 1 model at a time")
    _find_experiments()
    from ddcap.files import write_text
    from ddcap.machine import join_processes, leave, own_device
    from experiments.charts import save_charts
    from experiments.markdown import to_markdown
    from experiments.plan import load_plan
    from experiments.run import ablate, load_ablation

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


def _report(options: argparse.Namespace) -> int:
    _find_experiments()
    from experiments.report import write_report

    print(write_report(options.folder, options.output, photos=options.photos))
    return 0
