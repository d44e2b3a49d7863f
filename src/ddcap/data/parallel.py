"""Work on many files, spread over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_processes(
    function: Callable[[_Item], _Result], items: Sequence[_Item], processes: int, *, at_once: int = 1
) -> Iterator[_Result]:
    """`function` of every item, in order; with one process, in this one.

    Args:
        function: of a module, so that other processes find it.
        items: what can be sent to another process.
        processes: how many work side by side.
        at_once: items sent to a process together.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # not forked: torch's threads do not survive that
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=at_once)
