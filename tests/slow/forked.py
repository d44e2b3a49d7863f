"""Python commands in processes of their own, forked off one that has imported PyTorch: 4 seconds less each.

Tests of what a user's own start does, or of what starts us (torchrun, accelerate, a shell), use `subprocess`.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile

# what a training imports
MODULES = ["ddcap.commands", "ddcap.training.loop", "torch._dynamo", "transformers.models.clip.modeling_clip"]


class Process:
    """`subprocess.Popen([sys.executable, *arguments], text=True, start_new_session=True)`, but forked.

    It has this process's folder and environment; what it writes goes into files, so that it never waits.
    """

    def __init__(self, *arguments):
        told, tell = os.pipe()
        self._status = os.fdopen(told, "rb", buffering=0)
        self._output, self._errors = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        with tempfile.TemporaryFile("w+") as request:
            here = {"folder": os.getcwd(), "environment": dict(os.environ)}
            json.dump({"arguments": [*map(str, arguments)], **here}, request)
            request.flush()
            files = [request.fileno(), tell, self._output.fileno(), self._errors.fileno()]
            socket.send_fds(_server(), [b"."], files)
            os.close(tell)
            self.pid = int(self._status.readline())
        self.returncode = None

    def wait(self, timeout=None):
        """Wait for its end; gives the exit status, -N if signal N killed it."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = int(self._status.readline())
        return self.returncode

    def poll(self):
        """The exit status, None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for its end; gives what it wrote to stdout and to stderr."""
        self.wait(timeout)
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
        return tuple(texts)

    def send_signal(self, number):
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end_all(self):
        """Kill it and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


@functools.cache
def _server():
    """The connection to a process that forks; it ends, and kills what it forked, when this one ends."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, str(theirs.fileno())]
    subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    return ours


def _serve(connection):
    """Fork at every request, and tell each status; returns in the forked processes alone, their arguments."""
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection would copy what is shared
    told, tell = os.pipe()
    os.set_blocking(told, False)
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running = {}
    while True:
        ready, _, _ = select.select([connection, told], [], [])
        if told in ready:
            os.read(told, 1000)
            _tell_ended(running)
        if connection not in ready:
            continue
        message, files, _, _ = socket.recv_fds(connection, 1, 4)
        if not message:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            os._exit(0)
        request, status, *streams = files
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            for file in (told, tell, *running.values()):
                os.close(file)
            return _settle_in(request, status, streams)
        running[pid] = status
        for file in (request, *streams):
            os.close(file)


def _tell_ended(running):
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            file = running.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # nobody asks
                os.write(file, b"%d\n" % os.waitstatus_to_exitcode(status))
            os.close(file)


def _settle_in(request, status, streams):
    """Become a process as if newly started; gives its arguments."""
    os.setsid()
    for number, file in enumerate(streams, 1):
        os.dup2(file, number)
        os.close(file)
    with os.fdopen(request) as file:
        file.seek(0)
        given = json.load(file)
    os.chdir(given["folder"])
    os.environ.clear()
    os.environ.update(given["environment"])
    os.write(status, b"%d\n" % os.getpid())
    os.close(status)
    return given["arguments"]


if __name__ == "__main__":
    kind, what, *rest = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.argv, sys.path[0] = ["-c", *rest], os.getcwd()
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
