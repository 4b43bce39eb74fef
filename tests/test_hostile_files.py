"""Files with hostile fields through every command that reads them: an error of ours, or the right result.

Nothing foreign ends a command, no file makes it hang or take memory without measure, no name in one steers the
terminal, and what is taken is what another reader finds. ``scripts/faults/run hostile 2000 [FORMAT ...]`` tries so many
of each.
"""

from __future__ import annotations

import io
import json
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hostile_own_files import OWN, make_whole
from hostile_sources import SOURCES

import streamtrain
from streamtrain.cli.main import main as command

SECONDS = 10
"""Of computing; a command that waits may take `MOST_WAITING` times as long, on a machine with other work."""
MOST_WAITING = 12
MOST_GROWN_BYTES = 400_000_000
N_FAST = 40
N_FAST_OWN = 16
"""Fewer, since several commands read each; ``scripts/faults/run hostile 2000 manifest lock ...`` is the full sweep."""
REFUSED = {2, 3, 4, 5, 6, 8, 9}
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Attempt = Callable[[np.random.Generator, Path], str]
"""Makes a file, reads it, and says what came of it; AssertionError where that is wrong."""


@contextmanager
def watched() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds of computing, or {MOST_WAITING * SECONDS} in all")

    before = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGPROF)}
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(MOST_WAITING * SECONDS)
    try:
        yield
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held)
        assert grown <= MOST_GROWN_BYTES, f"took {grown:,} bytes"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def ran(words: list[str]) -> tuple[int, str]:
    """Run a command; its exit code and what it printed, which holds nothing but text."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), watched():
        code = command(words)
    for text in (out.getvalue(), err.getvalue()):
        assert not (found := _CONTROL.search(text)), f"{found[0]!r} was printed: {text[:200]!r}"
    assert "Traceback" not in err.getvalue(), err.getvalue()
    assert code in REFUSED | {0}, f"exit code {code}: {err.getvalue()[-300:]}"
    assert code == 0 or words[0] == "verify" or "error: " in err.getvalue(), err.getvalue()[:300]
    return code, err.getvalue()


def of_source(name: str) -> Attempt:
    def attempt(rng: np.random.Generator, folder: Path) -> str:
        words, oracle = SOURCES[name](rng, folder)
        dest = folder / "d.zarr"
        if ran(["ingest", *words[:1], str(dest), *words[1:], "--memory", "32MB"])[0]:
            assert not dest.exists(), "a refused ingest left something"
            return "refused"
        assert ran(["info", str(dest)])[0] == 0
        rows = streamtrain.open(dest)[:]
        if oracle is not None:
            expected = oracle()
            assert rows.keys() == expected.keys()
            for field, values in expected.items():
                np.testing.assert_array_equal(rows[field], values)
        return "taken"

    return attempt


def of_own(name: str, whole: Path) -> Attempt:
    def attempt(rng: np.random.Generator, folder: Path) -> str:
        copy = Path(shutil.copytree(whole, folder / "whole"))
        codes = [ran(words)[0] for words in OWN[name](rng, copy)]
        return "refused" if any(codes) else "taken"

    return attempt


def attempts(attempt: Attempt, folder: Path, seeds: range) -> tuple[Counter[str], list[str]]:
    """Try many; what came of them, and what failed."""
    found, failed = Counter[str](), list[str]()
    for seed in seeds:
        own = folder / "own"
        own.mkdir()
        try:
            found[attempt(np.random.default_rng(seed), own)] += 1
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            failed.append(
                f"seed {seed}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error!s:.400}"
            )
        shutil.rmtree(own)
    return found, failed


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", SOURCES)
def test_a_hostile_source_is_refused_or_right(name: str, tmp_path: Path) -> None:
    found, failed = attempts(of_source(name), tmp_path, range(N_FAST))
    assert (found.total(), failed) == (N_FAST, [])
    assert found["refused"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole(tmp_path_factory.mktemp("hostile"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", OWN)
def test_a_hostile_file_of_our_own_is_refused_or_right(name: str, whole: Path, tmp_path: Path) -> None:
    found, failed = attempts(of_own(name, whole), tmp_path, range(N_FAST_OWN))
    assert (found.total(), failed) == (N_FAST_OWN, [])


FOUND = (("config.json", 103), ("checkpoint state", 97), ("checkpoint state", 135), ("checkpoint tensors", 162))
"""Seeds of the full sweep that ended as bugs: no inputs, an option lost, a huge number, no statistics of an input."""


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("name", "seed"), FOUND)
def test_what_the_full_sweep_found_is_refused(name: str, seed: int, whole: Path, tmp_path: Path) -> None:
    found, failed = attempts(of_own(name, whole), tmp_path, range(seed, seed + 1))
    assert (dict(found), failed) == ({"refused": 1}, [])


def main() -> None:
    """Try so many of each format, or of the named ones; print what came of them, in JSON and for people."""
    import torch

    torch.set_num_threads(1)
    first, _, n = sys.argv[1].rpartition(":")
    seeds, n_wrong = range(int(first or 0), int(first or 0) + int(n)), 0
    with tempfile.TemporaryDirectory() as name:
        folder, whole = Path(name), make_whole(Path(name, "made"))
        for kind in sys.argv[2:] or [*SOURCES, *OWN]:
            started = time.perf_counter()
            found, failed = attempts(of_source(kind) if kind in SOURCES else of_own(kind, whole), folder, seeds)
            seconds, n_wrong = time.perf_counter() - started, n_wrong + len(failed)
            result = {"stage": f"hostile {kind}", "fault": "mutated fields", "cases": len(seeds), "wrong": len(failed)}
            print(json.dumps({**result, "first_wrong": next(iter(failed), None), **found}), flush=True)
            print(f"{kind}: {len(seeds):,}: {dict(found)}, {len(failed)} wrong, {seconds:.0f} s", file=sys.stderr)
            print(*failed[:8], sep="\n  ", file=sys.stderr, flush=True)
    raise SystemExit(n_wrong > 0)


if __name__ == "__main__":
    main()
