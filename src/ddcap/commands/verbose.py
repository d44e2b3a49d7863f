"""The choice of machine and precision in words: for `--verbose`, and when a service starts."""

from __future__ import annotations

from ddcap.captioner import Captioner
from ddcap.cpu import cpu_features, cpu_name
from ddcap.machine import own_cores
from ddcap.model.precision import fastest_precision

_RUNTIMES = {"onnx": "ONNX Runtime", "torch": "PyTorch"}


def describe_choice(captioner: Captioner, *, is_chosen: bool, processes: int = 1) -> tuple[str, str]:
    """Describe the machine, and how a captioner runs on it, in a line each.

    Args:
        captioner: of the model.
        is_chosen: whether ddcap chose the precision, as "auto" asks for.
        processes: number of them that caption.
    """
    device, cores = str(captioner.model.device), own_cores()
    why = fastest_precision(captioner.runtime, device).why if is_chosen else "as asked for"
    features = ", ".join(cpu_features()) or "none of the instructions that matter"
    graphs = " by CUDA graphs" if getattr(captioner.model, "static_decoder", None) else ""
    threads = _counted(max(1, cores // processes), "thread")
    return (
        f"ddcap: CPU {cpu_name()} with {features}; {_counted(cores, 'core')}",
        f"ddcap: {_RUNTIMES[captioner.runtime]} on {device}{graphs}, {captioner.precision} ({why}); "
        + (f"1 process, {threads}" if processes == 1 else f"{processes} processes, {threads} each"),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
