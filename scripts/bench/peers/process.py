"""The parent's side: environments with one peer each, and workers that answer within a deadline or are ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import psutil

from streamtrain.diagnostics.profile_command import sample_memory

ROOT: Final = Path(__file__).resolve().parents[3]
ENVIRONMENT_BYTES: Final = 2_500_000_000
"""Room for one environment with torch in it."""
_GRACE_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 0.05
# A socket's path has room for about a hundred bytes, of which multiprocessing takes some thirty.
_LONGEST_TEMPORARY: Final = 70


class NotMeasured(Exception):
    """Why a peer has no figure: it could not be installed, failed, or took too long."""


def environment(folder: Path, packages: tuple[str, ...], seconds: float) -> Path:
    """The Python of a virtual environment with these packages; made where it is not there yet.

    Raises
    ------
    NotMeasured
        The packages cannot be installed, or not in this time.
    """
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp = folder / "packages"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages],
    )
    for command in commands:
        _run(command, temporary, seconds)
    shutil.rmtree(temporary)
    stamp.write_text(wanted)
    return python


def _run(command: list[str], temporary: Path, seconds: float) -> None:
    env = {**os.environ, "TMPDIR": str(temporary)}
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds, env=env)
    except subprocess.TimeoutExpired:
        raise NotMeasured(f"not installed within {seconds:.0f} s") from None
    except (subprocess.CalledProcessError, OSError) as error:
        errors = [line for line in (getattr(error, "stderr", "") or "").splitlines() if line.startswith("ERROR")]
        raise NotMeasured(f"not installed: {errors[-1] if errors else error}") from None


class Process:
    """A worker and its helpers, in a process group of their own.

    Parameters
    ----------
    python : Path
        The peer's interpreter.
    module : str
        Of this package, to be run.
    folder : Path
        Where it works, and leaves its log.
    cgroup : Path, optional
        A control group to start it in.
    """

    def __init__(self, python: Path, module: str, folder: Path, cgroup: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = module
        self.log = folder / f"{module}.log"
        command = [str(python), "-m", f"scripts.bench.peers.{module}"]
        if cgroup is not None:
            command = ["sh", "-c", f'echo $$ > "{cgroup}/cgroup.procs" && exec "$@"', "sh", *command]
        paths = [str(ROOT)]
        if python == Path(sys.executable):
            paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        added = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)}
        if len(os.fsencode(folder)) <= _LONGEST_TEMPORARY:
            added["TMPDIR"] = str(folder)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, **added},
                start_new_session=True,
            )

    def ask(
        self, do: str, *, within: float, watch: Callable[[], object] | None = None, **request: Any
    ) -> dict[str, Any]:
        """The answer to a request; ``watch`` is called twenty times a second until it comes.

        Raises
        ------
        NotMeasured
            The worker failed, or gave no answer in this time.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise NotMeasured(f"{self.name}: {do}: the worker ended: {self._last_words()}") from None
        ends = time.monotonic() + within
        while not select.select([self.process.stdout], [], [], _TICK_SECONDS if watch else within)[0]:
            if watch is None or time.monotonic() >= ends:
                raise NotMeasured(f"{self.name}: {do}: no answer within {within:.0f} s")
            watch()
        line = self.process.stdout.readline()
        if not line:
            raise NotMeasured(f"{self.name}: {do}: the worker ended: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NotMeasured(f"{self.name}: {do}: {answer['error']}")
        return answer

    def held_bytes(self) -> int:
        """What the worker and its helpers hold now, for themselves and shared; the page cache is nobody's."""
        try:
            worker = psutil.Process(self.process.pid)
            held = sample_memory([worker, *worker.children(recursive=True)]).held.values()
        except psutil.Error:
            return 0
        return sum(each.anonymous + each.shared for each in held)

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self.process.poll()}"

    def close(self, *, patient: bool = True) -> None:
        """End the worker and whatever it started: by the end of its requests, then politely, then at once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if patient and self._ends():
                break
            self._signal(number)
            patient = True
        self.process.wait()
        self.process.stdout.close()

    def _ends(self) -> bool:
        """Whether the whole group ends within the grace: helpers tidy up after the worker, and need a moment for it."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None and not self._signal(0):
                return True
            time.sleep(0.02)
        return False

    def _signal(self, number: int) -> bool:
        """Signal the group; whether there was one."""
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What failed or was interrupted may be in the middle of a long request.
        self.close(patient=kind is None)
