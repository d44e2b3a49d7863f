"""The machine's hardware, and the processes that work on one thing."""

from __future__ import annotations

import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ddcap.cpu import cpu_name

if TYPE_CHECKING:
    import torch


# What the machine is and what it can do.


def describe_machine() -> str:
    """Processor or GPU, threads, torch if it is installed, Python."""
    model = cpu_name()
    threads, versions = os.cpu_count(), f"Python {platform.python_version()}"
    if find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            model = f"{torch.cuda.get_device_name()}, {model}"
        threads, versions = torch.get_num_threads(), f"torch {torch.__version__}, {versions}"
    return f"{model}, {threads} threads, {versions}"


def computing(device: torch.device, *, bfloat16: bool) -> torch.autocast:
    """The context of a forward pass: mixed precision, or none."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def computes_bfloat16(device: str) -> bool:
    """Return True if a device has instructions of its own for bfloat16; without them it would be slower.

    Args:
        device: "cpu", or a GPU as torch names it.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)  # not in older torch
    capabilities = ask()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


# Threads that work ahead.


def own_cores() -> int:
    """Cores for this process: as many as OMP_NUM_THREADS says, or else those that it may run on.

    A container can have a share of many cores; then it is that many.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said) > 0:
        return int(said)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit("cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdecimal() else cores


def own_memory() -> int | None:
    """Bytes of memory of this machine or container; None where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _limit("memory.max")
    return min(memory, int(limit)) if limit.isdecimal() else memory


CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux says what a container may use."""


def _limit(name: str) -> str:
    """A limit of the container; "max", or nothing, where there is none."""
    try:
        return (CONTAINER / name).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def ahead(
    work: Callable[[_Job], _Result], jobs: Iterable[_Job], workers: int | None = None
) -> Iterator[tuple[_Job, _Result]]:
    """Jobs with what `work` makes of them, in order; threads are at work on the next ones meanwhile.

    Args:
        work: may raise; the error is raised here when its turn comes.
        jobs: taken one by one, a few more than there are threads at a time.
        workers: threads; None: one a core, see `own_cores`.
    """
    workers = workers or own_cores()
    waiting: deque[tuple[_Job, Future[_Result]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for job in jobs:
            waiting.append((job, pool.submit(work, job)))
            if len(waiting) > workers + 1:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


# Several processes that work on one thing: started by torchrun or accelerate, on one machine or more.


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
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "MASTER_ADDR" not in os.environ:
        return ALONE
    import torch
    import torch.distributed as distributed

    if not distributed.is_available():
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
    if "torch" not in sys.modules:
        return False
    import torch.distributed as distributed

    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def own_device(device: str) -> str:
    """`device` for this process: where several share a machine's GPUs, "cuda" is to be another for each."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device
