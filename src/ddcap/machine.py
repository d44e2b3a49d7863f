"""What the machine is and what it can do."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def describe_machine() -> str:
    """Processor or GPU, threads, torch and Python."""
    import torch

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip()
            for line in information.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    if torch.cuda.is_available():
        model = f"{torch.cuda.get_device_name()}, {model}"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{model}, {torch.get_num_threads()} threads, {versions}"


def computing(device: torch.device, *, bfloat16: bool) -> torch.autocast:
    """The context of a forward pass: mixed precision, or none."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)


def computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions of its own for bfloat16; without them it would be slower, not faster.

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
