"""The processor: its name, and which of its instructions matter for the speed of a caption."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFORMATION = Path("/proc/cpuinfo")
"""Where Linux describes the processor."""

_FEATURES = {  # the names that Linux and numpy have for them
    "AVX2": ("avx2", "X86_V3"),
    "AVX-512": ("avx512f", "X86_V4"),
    "AVX-VNNI": ("avx_vnni",),
    "AVX-512 VNNI": ("avx512_vnni", "AVX512_ICL"),
    "AVX-512 BF16": ("avx512_bf16",),
    "AMX INT8": ("amx_int8",),
    "AMX BF16": ("amx_bf16",),
    "dot products": ("asimddp", "ASIMDDP"),  # from here on of ARM
    "I8MM": ("i8mm",),
    "BF16": ("bf16",),
}
_INTEGERS = ("AMX INT8", "AVX-512 VNNI", "AVX-VNNI", "I8MM", "dot products")  # the best first


def cpu_name() -> str:
    """The processor's name, as far as the system says."""
    return _information().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """The vector instructions of this processor that matter, by their names in documents."""
    fields = _information()
    words = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}  # the latter on ARM
    if not words:  # not Linux: what numpy looks for is less
        import numpy as np

        words = set(np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", ()))
    return tuple(name for name, spellings in _FEATURES.items() if words & {*spellings})


def integer_products() -> str | None:
    """The best instructions for products of 8-bit integers that this processor has; None if it has none."""
    found = cpu_features()
    return next((name for name in _INTEGERS if name in found), None)


def _information() -> dict[str, str]:
    """Read what Linux says of the first core; nothing elsewhere."""
    try:
        first = CPU_INFORMATION.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
