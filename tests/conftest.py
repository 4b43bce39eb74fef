"""The frame of every test: nothing is left running, nothing is left open, and hypothesis repeats itself."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from tqdm import TMonitor

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is a worker for each core; more threads than cores spin while they wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("repeatable")

TESTS = Path(__file__).parent
# They need other people's trainers, and fail without; `scripts/test --engines` names the folder, which then counts.
collect_ignore = ["engines"]
SLOW = {line for line in (TESTS / "slow.txt").read_text().splitlines() if not line.startswith("#")}
SLOW_PLACES = tuple(line for line in SLOW if line.endswith(("/", ".py")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what slow.txt lists, before anything is selected by its marks."""
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)


def is_slow(item: pytest.Item) -> bool:
    name = getattr(item, "originalname", None) or item.name
    place = str(item.path).removeprefix(f"{TESTS}/")
    return name in SLOW or place.startswith(SLOW_PLACES)


# A shell that starts the tests in the background has them ignore Ctrl-C, and whatever they start would do so too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No power fails here, and a busy disk makes every dataset wait. That files are flushed is seen by the calls.
os.fsync = os.fstat

X = np.repeat(np.arange(60, dtype=np.float32).reshape(20, 3), 5, axis=0)


@pytest.fixture(scope="session")
def whole_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a dataset of 100 samples in 10 blocks is that no test may change."""
    import streamtrain

    path = tmp_path_factory.mktemp("whole") / "d.zarr"
    streamtrain.ingest({"x": X, "y": np.arange(100) % 3}, path, block=20 * 10, codec="lz4")
    return path


@pytest.fixture
def dataset_to_harm(whole_dataset: Path, tmp_path: Path) -> Path:
    """A copy of it that is the test's own."""
    return Path(shutil.copytree(whole_dataset, tmp_path / "d.zarr"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: small work is soonest done so, and beside other processes by far."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of comparisons are written without their drawings, which take most of the time."""
    from streamtrain.comparison import report
    from streamtrain.diagnostics.charts import Drawing

    monkeypatch.setattr(report, "draw", lambda chart: Drawing(title=chart.title, svg="", alt=""))


@pytest.fixture
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that relative paths begin at is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


_MANY_MODULES = 100
_n_settled = 0


@pytest.fixture(autouse=True, scope="module")
def settled_heap() -> None:
    """Leave what is there before a module's tests out of their garbage collections, which took a third of a second."""
    _settle()


@pytest.fixture(autouse=True)
def settled_imports(settled_heap: None) -> None:
    """Leave out too what tests before this one have imported."""
    if len(sys.modules) > _n_settled + _MANY_MODULES:
        _settle()


def _settle() -> None:
    global _n_settled
    gc.collect()
    gc.freeze()
    _n_settled = len(sys.modules)


_GRACE_SECONDS = 2.0
# Threads that a library starts once and keeps for the life of the process: zarr's event loop and its pool, asyncio's,
# dask's and distributed's default pools, and tqdm's monitor, which is known by its class: it has a name in new versions
# only. Our own have names of ours, which a test of the architecture holds.
_LASTING_THREADS = ("zarr_io", "zarr_pool", "asyncio_", "ThreadPoolExecutor-", "Dask-Offload")
# Files likewise: the fonts that matplotlib has drawn with.
_LASTING_FILES = (".ttf", ".otf", ".ttc")
_OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Every thread a test starts has ended with it."""
    before = set(threading.enumerate())
    yield
    leaked = _settled(lambda: [thread.name for thread in threading.enumerate() if _is_of_the_test(thread, before)])
    assert not leaked, f"threads left running: {leaked}"


@pytest.fixture(autouse=True)
def no_leaked_files() -> Iterator[None]:
    """Every file a test opens is closed with it."""
    before = _open_files()
    yield
    leaked = _settled(lambda: list((_open_files() - before).elements()))
    assert not leaked, f"files left open: {leaked}"


def _settled(find: Callable[[], list[str]]) -> list[str]:
    """What is still found after the grace, in which ends take effect and cycles are collected."""
    deadline = time.monotonic() + _GRACE_SECONDS
    while (found := find()) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    return found


def _is_of_the_test(thread: threading.Thread, before: set[threading.Thread]) -> bool:
    return not (thread in before or isinstance(thread, TMonitor) or thread.name.startswith(_LASTING_THREADS))


def _open_files() -> Counter[str]:
    """The regular files and folders this process holds open; none where the system does not tell."""
    found: Counter[str] = Counter()
    for descriptor in _OPEN_FILES.iterdir() if _OPEN_FILES.is_dir() else ():
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue  # closed since it was listed, as the listing's own is
        if target.startswith("/") and not (target.startswith(("/dev/", "/proc/")) or target.endswith(_LASTING_FILES)):
            found[target] += 1
    return found
