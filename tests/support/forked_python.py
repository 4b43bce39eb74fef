"""Scripts in processes of their own, forked from one that has imported the libraries: two seconds of work less each."""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import streamtrain as st

ROOT = Path(__file__).resolve().parents[2]
_SERVE = "import sys; sys.path[0:0] = sys.argv[2:]; import forked_python; forked_python.serve(int(sys.argv[1]))"
_MOST_BYTES = 1 << 20
_LATER = ("streamtrain.cli.main", "torch._dynamo", "torch.distributed.nn.functional", "zarr")
"""What training, ranks and ingests import when they begin: a second of work."""
_made: list[socket.socket] = []


class Forked:
    """A script in a process of its own, its output in pipes: to be used as a ``subprocess.Popen`` of text is."""

    def __init__(self, words: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        asked = json.dumps(
            {"words": [*words], "env": {**(os.environ if env is None else env)}, "cwd": str(cwd or Path.cwd())}
        )
        self.args = [sys.executable, *words]
        self.returncode: int | None = None
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, out_of_it), (err, err_of_it) = os.pipe(), os.pipe()
        fds = [theirs.fileno(), out_of_it, err_of_it]
        socket.send_fds(_server(), [asked.encode()], fds)
        theirs.close()
        os.close(out_of_it)
        os.close(err_of_it)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self._line.settimeout(60)
        self.pid = int(self._line.recv(32))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                self.returncode = int(self._line.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read what it writes to its end."""
        ends, told = None if timeout is None else time.monotonic() + timeout, dict[str, str]()
        readers = [
            threading.Thread(target=lambda name=name, file=file: told.update({name: file.read()}), daemon=True)
            for name, file in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(None if ends is None else max(ends - time.monotonic(), 0))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(None if ends is None else max(ends - time.monotonic(), 0))
        return told["out"], told["err"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()
        self.stderr.close()
        self._line.close()


def run_forked(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script, a module (``-m``) or code (``-c``) as ``subprocess.run`` would with its output captured."""
    with Forked(words, env=env, cwd=cwd) as process:
        try:
            said = process.communicate(timeout)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.wait(), *said)


def _server() -> socket.socket:
    """Return the line to the server of this process, made when it is first needed; it ends with this process."""
    if not _made:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST_BYTES)
        command = [sys.executable, "-c", _SERVE, str(theirs.fileno()), str(Path(__file__).parent), str(ROOT)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with theirs:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stdin=subprocess.DEVNULL)
        _made.append(ours)
        atexit.register(lambda: (ours.close(), process.wait(10)))
    return _made[0]


def serve(line: int) -> None:
    """Fork a process, and one that waits for it, for each script that is asked for; until the other end is closed."""
    for name in st.__all__:
        getattr(st, name)
    for name in _LATER:
        importlib.import_module(name)
    os.fsync = os.fstat  # as in conftest.py: no power fails
    gc.collect()
    gc.freeze()
    # What is imported is there; where to look for more, a script has to know by itself.
    del sys.path[:2]
    with socket.socket(fileno=line) as asked:
        while True:
            message, fds, *_ = socket.recv_fds(asked, _MOST_BYTES, 3)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not message:
                return
            answer, *streams = fds
            if not os.fork():
                asked.close()
                _wait_beside(json.loads(message), streams, answer)
                return
            for each in fds:
                os.close(each)


def _wait_beside(asked: dict[str, Any], streams: list[int], answer: int) -> None:
    """Fork the process that was asked for and tell its number, then how it ended."""
    process = os.fork()
    if not process:
        _become(asked, streams, answer)
        return
    for stream in streams:
        os.close(stream)
    with socket.socket(fileno=answer) as told, suppress(OSError):
        told.send(str(process).encode())
        told.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())
    os._exit(0)


def _become(asked: dict[str, Any], streams: list[int], answer: int) -> None:
    """Be the process that was asked for: its streams, folder, variables and arguments, and then its script."""
    os.close(answer)
    for place, stream in enumerate(streams, start=1):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    if n_threads := asked["env"].get("OMP_NUM_THREADS"):
        # Torch has read it when it was imported.
        torch.set_num_threads(int(n_threads))
    first, *more = asked["words"]
    sys.path[1:1] = [each for each in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if each]
    if first == "-c":
        sys.argv = ["-c", *more[1:]]
        exec(compile(more[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif first == "-m":
        sys.path[0], sys.argv = asked["cwd"], more
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).parent), asked["words"]
        runpy.run_path(first, run_name="__main__")
