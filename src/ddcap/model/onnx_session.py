"""Options of ONNX Runtime, the same for all graphs: the model's and the detector's."""

from __future__ import annotations

from typing import Any


def session_options(threads: int | None) -> Any:
    """Options of a session on the CPU.

    Args:
        threads: of one call; None takes all cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only; they come as exceptions
    options.enable_cpu_mem_arena = threads == 1  # in bulk it saves time; for one image it only takes memory
    # between two runs the threads of one graph would spin and take the cores from the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options
