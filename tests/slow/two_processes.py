"""Two processes that work on one thing, as torchrun starts them, but that import nothing anew.

To start Python and PyTorch three times takes longer than what they do. That torchrun and accelerate start us
well, and what happens if a process is killed, is tested with them.
"""

import forked

FORK = """
import os, signal, socket, sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
started = []
for rank in range(2):
    process = os.fork()
    if not process:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        break
    started.append(process)
else:
    failed = False
    while started:
        process, status = os.wait()
        started.remove(process)
        if status and not failed:  # the other one may wait for it for ever, or be about to end, too
            failed = True
            signal.signal(signal.SIGALRM, lambda *_: [os.kill(other, signal.SIGKILL) for other in started])
            signal.alarm(20)
    sys.exit(failed)
"""


def start_two(code, *arguments):
    """Start `code` with `arguments` in two processes, the children of the one that it gives."""
    return forked.Process("-c", FORK + code, *arguments)


def run_in_two(code, *arguments, timeout=300):
    """Run `code` with `arguments` in two processes. What they wrote to stdout and stderr."""
    process = start_two(code, *arguments)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.end_all()
    assert process.returncode == 0, err
    return out, err
