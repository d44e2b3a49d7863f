"""Several processes that work on one thing: started by torchrun or accelerate, on one machine or more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        count: how many there are.
        index: which one this is.
        gather: an object of this process to those of all, in order; all of them have to call it.
    """

    count: int
    index: int
    gather: Callable[[Any], list[Any]]


ALONE = Processes(1, 0, lambda mine: [mine])


def join_processes() -> Processes:
    """The processes that were started together with this one, or this one alone.

    Objects go over gloo, tensors on GPUs over NCCL, unless a training has connected them otherwise before.
    """
    import torch
    import torch.distributed as distributed

    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "MASTER_ADDR" not in os.environ or not distributed.is_available():
        return ALONE
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")

    def gather(mine: Any) -> list[Any]:
        everyones: list[Any] = [None] * count
        distributed.all_gather_object(everyones, mine)
        return everyones

    return Processes(count, distributed.get_rank(), gather)


def leave_together(status: int) -> int:
    """`leave`, when all processes have come here."""
    if _are_connected():
        join_processes().gather(None)
    return leave(status)


def leave(status: int) -> int:
    """End this process, if it is one of several: gloo's threads sometimes abort one that Python takes down.

    Alone it only returns `status`.
    """
    if _are_connected():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _are_connected() -> bool:
    import torch.distributed as distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def own_device(device: str) -> str:
    """`device` for this process: where several share a machine's GPUs, "cuda" is to be another for each."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
