"""The trainings of an ablation several at a time: each in a process of its own, which then scores its models.

Small models leave most of a GPU, or all cores but one, idle. What a process has finished lies on disk and is
not repeated, so that the ablation itself, which comes after, has little left to do.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ddcap.errors import DDCapError, TrainingInterruptedError
from ddcap.machine import own_cores
from ddcap.recipe import Recipe
from ddcap.training.start import build_feature_cache
from experiments.curves import learning_curves
from experiments.infilling_comparison import fill_blanks
from experiments.notebook import Notebook
from experiments.plan import Plan, Trial
from experiments.split import load_split
from experiments.table1 import decodings_of, score_row
from experiments.trainings import train_if_missing


@dataclass(frozen=True)
class Scoring:
    """Options of `ablate` for scoring: its output folder, images, metrics and device."""

    output: Path
    limit: int | None
    fast: bool
    device: str


# Of a process of the pool: the event that says to begin nothing more, and whether it is at work. A signal in
# between must not end it: the pool would take that for a crash, and end the others before they have saved.
_stopping: Any = None
_is_working = False


def train_side_by_side(plan: Plan, jobs: int, scoring: Scoring, say: Callable[[str], None]) -> None:
    """Train and score all that is missing, `jobs` at a time, the longest trainings first.

    Args:
        plan: see `load_plan`.
        jobs: processes; they share the cores.
        scoring: as for `ablate`.
        say: is told what ends.

    Raises:
        DDCapError: the first of any training, when the others are done.
        TrainingInterruptedError: by SIGTERM or SIGINT; trainings are saved, and the same command goes on.
    """
    context = multiprocessing.get_context("spawn")
    stopping = context.Event()
    threads = max(1, own_cores() // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_settle_in, initargs=(threads, stopping))
    with _passing_on_signals(stopping) as signals:
        try:
            recipes = _recipes_by_data(plan)
            shares = [(number, jobs) for number in range(jobs)]
            _wait((pool.submit(_build_caches, recipes, plan.file.split, share) for share in shares), say)
            parts = sorted(parts_of(plan), key=_images_read, reverse=True)
            _wait((pool.submit(_train_and_score, part, scoring) for part in parts), say)
        except (BrokenProcessPool, TrainingInterruptedError):
            if not signals:  # somebody stopped one process alone
                _stop_all(stopping)
                raise
        except BaseException:
            stopping.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    if signals:
        by = signal.Signals(signals[0])
        raise TrainingInterruptedError(
            f"stopped by {by.name}; the same command goes on from what is saved in {scoring.output}", 128 + by
        )


def parts_of(plan: Plan) -> list[Plan]:
    """One plan for each training, with all rows and curves that take its model."""
    folders = dict.fromkeys(trial.recipe.training.output for trial in plan.trials)

    def of(folder: str, trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
        return tuple(trial for trial in trials if trial.recipe.training.output == folder)

    return [
        replace(
            plan,
            rows=of(folder, plan.rows),
            sweeps={name: of(folder, trials) for name, trials in plan.sweeps.items()},
            curves={share: of(folder, trials) for share, trials in plan.curves.items()},
        )
        for folder in folders
    ]


def _images_read(part: Plan) -> float:
    recipe = part.trials[0].recipe
    return recipe.training.epochs * recipe.data.train_share


def _recipes_by_data(plan: Plan) -> list[Recipe]:
    """One recipe for each feature cache that the plan needs."""
    found = {repr((one.recipe.data, one.recipe.encoder)): one.recipe for one in plan.trials}
    return list(found.values())


def _stop_all(stopping: Any) -> None:
    """Let every process save what it trains, and begin nothing more."""
    stopping.set()
    for child in multiprocessing.active_children():
        child.terminate()


@contextmanager
def _passing_on_signals(stopping: Any) -> Iterator[list[int]]:
    """Tell the processes of a signal that only this one got; yields the numbers of those that came in."""
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        _stop_all(stopping)

    before = {one: signal.signal(one, pass_on) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _wait(futures: Iterator[Future[str]], say: Callable[[str], None]) -> None:
    """Tell what is done; an error is told at once, and raised when all others are done."""
    first: Exception | None = None
    for future in as_completed(list(futures)):
        error = future.exception()
        if isinstance(error, DDCapError) and not isinstance(error, TrainingInterruptedError):
            say(f"failed: {error}")
            first = first or error
        elif future.result():
            say(future.result())
    if first is not None:
        raise first


def _settle_in(threads: int, stopping: Any) -> None:
    global _stopping
    _stopping = stopping
    torch.set_num_threads(threads)
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    if _is_working:  # not in training, which listens itself
        raise TrainingInterruptedError(f"stopped by {signal.Signals(number).name}", 128 + number)


@contextmanager
def _at_work() -> Iterator[None]:
    global _is_working
    _is_working = True
    try:
        yield
    finally:
        _is_working = False


def _build_caches(recipes: list[Recipe], split: str, share: tuple[int, int]) -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _at_work():
        for recipe in recipes:
            if not _stopping.is_set():
                build_feature_cache(recipe, device, share, also=[split] if split != "val" else [])
    return ""


def _train_and_score(part: Plan, scoring: Scoring) -> str:
    """Train one model; score every row and curve that takes it."""
    if _stopping.is_set():
        return ""

    def silent(_: str) -> None:
        pass

    trial, notebook = part.trials[0], Notebook(scoring.output / "results")
    with _at_work():
        split = load_split(trial.recipe, part.file.split, scoring.limit, scoring.device)
        for decoding in decodings_of(part).values():
            score_row(decoding, split, notebook, silent, fast=scoring.fast)
        learning_curves(part, split, notebook, silent, fast=scoring.fast)
        for share in part.file.infilling.shares:
            fill_blanks(part, split, notebook, silent, share)
        for sweep in part.sweeps.values():
            for one in sweep:
                train_if_missing(one, silent)
    return f"done: {Path(trial.recipe.training.output).name}"
