"""The precision that a machine computes fastest, by what its processor can do.

With ONNX Runtime integers are fastest on each kind of CPU that was measured, with and without instructions
for products of 8-bit integers, see docs/performance.md. PyTorch takes bfloat16 on a device made for it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ddcap.cpu import integer_products
from ddcap.machine import computes_bfloat16

Precision = Literal["auto", "float32", "bfloat16", "int8"]


class FastestPrecision(NamedTuple):
    """A precision, and why it is the fastest here.

    Attributes:
        precision: not "auto".
        why: for people, as part of a line.
    """

    precision: Precision
    why: str


def fastest_precision(runtime: str, device: str) -> FastestPrecision:
    """Choose what `precision="auto"` stands for.

    Args:
        runtime: "onnx" or "torch".
        device: "cpu", or a GPU as torch names it.
    """
    if runtime == "onnx":
        found = integer_products()
        if found is None:
            return FastestPrecision(
                "int8", "faster than float32 even without instructions for 8-bit integers"
            )
        return FastestPrecision("int8", f"the fastest with {found}, instructions for 8-bit integers")
    kind = "CPU" if device == "cpu" else "device"
    if computes_bfloat16(device):
        return FastestPrecision("bfloat16", f"this {kind} has instructions for it")
    return FastestPrecision("float32", f"this {kind} has no instructions for bfloat16")
