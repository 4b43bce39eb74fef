"""Scripts in processes of their own, forked from one that has imported the libraries: two seconds of work less each."""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch

import streamtrain as st

ROOT = Path(__file__).resolve().parents[2]
_SERVE = "import sys; sys.path[0:0] = sys.argv[2:]; import forked_python; forked_python.serve(int(sys.argv[1]))"
_MOST_BYTES = 1 << 20
_made: list[socket.socket] = []


def run_forked(
    words: list[str], *, env: dict[str, str], cwd: Path | None = None, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script, the first of these words, as ``subprocess.run`` would with its output captured."""
    ours, theirs = socket.socketpair()
    with ours, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with theirs:
            asked = json.dumps({"words": words, "env": env, "cwd": str(cwd or Path.cwd())})
            fds = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(_server(), [asked.encode()], fds)
        ours.settimeout(60)
        process = int(ours.recv(32))
        ours.settimeout(timeout)
        try:
            code = int(ours.recv(32))
        except TimeoutError:
            os.kill(process, signal.SIGKILL)
            ours.settimeout(60)
            ours.recv(32)
            raise subprocess.TimeoutExpired(words, timeout or 0) from None
        said = [out.seek(0) or out.read(), err.seek(0) or err.read()]
    return subprocess.CompletedProcess([sys.executable, *words], code, *said)


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
    """Fork a process for each script that is asked for, one after another, until the other end is closed."""
    for name in st.__all__:
        getattr(st, name)
    gc.collect()
    gc.freeze()
    # What is imported is there; where to look for more, a script has to know by itself.
    del sys.path[:2]
    with socket.socket(fileno=line) as asked:
        while True:
            message, fds, *_ = socket.recv_fds(asked, _MOST_BYTES, 3)
            if not message:
                return
            answer, *streams = fds
            process = os.fork()
            if not process:
                asked.close()
                _become(json.loads(message), streams, answer)
                return
            for stream in streams:
                os.close(stream)
            with socket.socket(fileno=answer) as told, suppress(OSError):
                told.send(str(process).encode())
                told.send(str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])).encode())


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
    script, *_ = sys.argv = asked["words"]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")
