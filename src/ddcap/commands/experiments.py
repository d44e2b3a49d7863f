"""`ddcap ablate` and `ddcap report`: the parsers of `python -m experiments`, the repository's comparisons."""

from __future__ import annotations

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
    ablate.set_defaults(run=lambda options: _experiments("ablate").ablate_command(options))

    report = commands.add_parser("report", help="write an HTML page about an ablation")
    report.add_argument("folder", help="output folder of `ablate`, or its metrics.json")
    report.add_argument(
        "--output",
        default="report.html",
        help="write this page (.html), or the tables only (.md) (default: report.html)",
    )
    report.add_argument(
        "--photos", type=int, default=24, help="show this many test photographs (default: 24)"
    )
    report.set_defaults(run=lambda options: _experiments("report").report_command(options))


def _experiments(name: str) -> Any:
    """The repository's `experiments.command`, which the wheel does not hold.

    Raises:
        DDCapError: if it cannot be imported: `ddcap` runs outside the repository.
    """
    try:
        from experiments import command
    except ImportError as error:
        if error.name not in ("experiments", "experiments.command"):
            raise
        raise DDCapError(
            "the experiments are not part of the installed package; clone the repository and run there: "
            f"python -m experiments {name}"
        ) from None
    return command
