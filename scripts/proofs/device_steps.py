"""Steps of `device.py` on a real GPU: each gives figures, and what of them is not as it must be."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import streamtrain as st
from streamtrain.loader.device import cuda
from streamtrain.loader.device.cuda import CudaAccelerator
from streamtrain.loader.device.transfer import Placement
from streamtrain.store.dataset import Dataset
from streamtrain.system.buffers import aligned_bytes

ROOT: Final = Path(__file__).resolve().parents[2]
POOLS: Final = ("host", "device")
MIB: Final = 1 << 20
_LATE_CYCLES: Final = 3_000_000  # about 2 ms
Found = tuple[dict[str, Any], list[str]]


def take(name: str) -> dict[str, Any]:
    """Take a step."""
    with tempfile.TemporaryDirectory() as folder:
        figures, failures = STEPS[name](Path(folder))
    return {"figures": figures, "failures": failures}


class Checks:
    """What is not as it must be."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    def see(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong unless something holds."""
        if not holds:
            self.failures.append(otherwise)


def start(**figures: Any) -> tuple[Checks, dict[str, Any]]:
    """Checks and figures to begin with."""
    return Checks(), figures


def rows(folder: Path, n: int = 9001) -> Dataset:
    """Rows that know their number, in three fields of 2400, 8 and 1 bytes: about 20 MB."""
    y = np.arange(n)
    fields = {"x": (y[:, None] + np.arange(600)).astype(np.float32), "y": y, "z": y % 2 == 0}
    return st.ingest(fields, folder / "rows.zarr", block="24KB", codec="lz4", progress=False)


def loader_on(dataset: Dataset, pool: Any, **options: Any) -> st.StreamLoader:
    """A loader whose pool has no room to spare, so that every slot is used again and again."""
    given: dict[str, Any] = {"batch_size": 100, "memory": "96MB", "lanes": 16, "seed": 3} | options
    loader = st.StreamLoader(dataset, device=Placement(device="cuda", pool=pool), **given)
    loader._own_sizes = replace(loader.sizes, slots=loader.sizes.working_slots)
    return loader


def facts(folder: Path) -> Found:
    """What the loader takes for granted of torch and the driver."""
    checks, figures = start(kernel=platform.release(), torch=torch.__version__, cuda=torch.version.cuda)
    figures["device"] = torch.cuda.get_device_name()
    # False: the trap that hand_over steps round.
    figures["stream != None"] = torch.cuda.current_stream() != None  # noqa: E711
    accelerator = CudaAccelerator(torch.device("cuda"))
    figures["page-locking"] = accelerator._process.locking.way
    for size in (4096, MIB, 16 * MIB, 256 * MIB):
        began = time.perf_counter()
        memory = accelerator.page_locked(size)
        seconds = time.perf_counter() - began
        memory[:] = np.arange(size, dtype=np.uint8)
        source = torch.from_numpy(memory)
        copied = source.to("cuda", non_blocking=True)
        checks.see(source.is_pinned(), f"{size} bytes are not page-locked")
        checks.see(torch.equal(copied.cpu(), source), f"{size} bytes came wrong")
        checks.see(seconds <= 0.002 + 0.001 * size / MIB, f"page-locking {size} bytes took {seconds:.3f} s")
    n = 256 * MIB
    ways = {
        "registered": torch.from_numpy(accelerator.page_locked(n)),
        "pinned": torch.empty(n, dtype=torch.uint8, pin_memory=True),
        "pageable": torch.from_numpy(aligned_bytes(n)),
    }
    target = torch.empty(n, dtype=torch.uint8, device="cuda")
    for name, source in ways.items():
        source.fill_(1)
        figures[f"{name} GB/s"] = round(n / 1e9 / best_of(partial(copy, source, target)), 1)
    checks.see(figures["registered GB/s"] >= 0.95 * figures["pinned GB/s"], "registered memory is copied more slowly")
    checks.see(figures["pinned GB/s"] >= 2 * figures["pageable GB/s"], "page-locking gains less than twice")
    return figures, checks.failures


def copy(source: Tensor, target: Tensor) -> None:
    """Copy, and wait."""
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()


def best_of(act: Callable[[], object], n: int = 5) -> float:
    """The least seconds of a few times."""

    def once() -> float:
        began = time.perf_counter()
        act()
        return time.perf_counter() - began

    return min(once() for _ in range(n))


def hand_over(folder: Path) -> Found:
    """One hand-over a span, and a caller that waits for nothing."""
    (checks, figures), dataset = start(), rows(folder)
    for pool in POOLS:
        admitted: list[int] = []
        admit = CudaAccelerator.admit

        def count(self: CudaAccelerator, memory: Tensor, marks: Any, admit: Any = admit, to: Any = admitted) -> Any:
            to.append(len(marks))
            return admit(self, memory, marks)

        with mock.patch.object(CudaAccelerator, "admit", count), loader_on(dataset, pool) as loader:
            n_spans = 2 * -(-len(dataset) // loader.sizes.span_samples(len(dataset)))
            for _ in range(2):
                for batch in loader:
                    del batch
        figures[f"{pool}: hand-overs, spans"] = f"{len(admitted)}, {n_spans}"
        checks.see(len(admitted) == n_spans, f"{pool}: {len(admitted)} hand-overs of {n_spans} spans")
        with loader_on(dataset, pool) as loader:
            batches = iter(loader)
            next(batches)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for batch in batches:
                    del batch
            except RuntimeError as error:
                checks.see(False, f"{pool}: the caller waited for the device: {error}")
            finally:
                torch.cuda.set_sync_debug_mode("default")
    return figures, checks.failures


def sleep() -> bool:
    """Let the current stream do nothing for about two milliseconds, beside the caller."""
    torch.cuda._sleep(_LATE_CYCLES)  # type: ignore[no-untyped-call]
    return True


def wrong_tensors(dataset: Dataset, pool: str, late: str) -> int:
    """How many tensors of two epochs differ from the CPU's while somebody is late."""
    with st.StreamLoader(dataset, batch_size=100, memory="96MB", lanes=16, seed=3) as loader:
        expected = [tensor.clone() for _ in range(2) for batch in loader for tensor in batch]
    found: list[Tensor] = []
    streams = [torch.cuda.current_stream(), torch.cuda.Stream()]  # type: ignore[no-untyped-call]
    with delayed(late), loader_on(dataset, pool) as loader:
        for i, batch in enumerate(batch for _ in range(2) for batch in loader):
            if late == "consumer":
                sleep()
            found += [tensor.clone() for tensor in batch]
            del batch
            if late == "switching":
                torch.cuda.set_stream(streams[(i + 1) % 2])
    torch.cuda.synchronize()
    torch.cuda.set_stream(streams[0])
    return sum(not torch.equal(mine.cpu(), theirs) for mine, theirs in zip(found, expected, strict=True))


@contextlib.contextmanager
def delayed(late: str) -> Iterator[None]:
    """Let one of the loader's streams sleep before all that it does."""
    run = cuda._CudaQueue.run

    def slowly(self: Any, act: Callable[[], object], /, *, after: Any = ()) -> Any:
        is_late = getattr(CudaAccelerator(torch.device("cuda")), late) is self
        return run(self, (lambda: [sleep(), act()]) if is_late else act, after=after)

    with (
        mock.patch.object(cuda._CudaQueue, "run", slowly) if late in ("copies", "gathers") else contextlib.nullcontext()
    ):
        yield


def races(folder: Path) -> Found:
    """No wrong tensor, whoever is late; wrong ones once a guard is put out of action."""
    checks, figures, dataset = Checks(), {}, rows(folder, n=3001)
    for pool in POOLS:
        for late in ("copies", "gathers", "consumer", "switching"):
            figures[f"{pool}, {late}"] = n = wrong_tensors(dataset, pool, late)
            checks.see(n == 0, f"{pool}, {late} late: {n} wrong tensors")
    admit = CudaAccelerator.admit
    for name, late, guard in (
        ("admit", "copies", mock.patch.object(CudaAccelerator, "admit", lambda s, memory, marks: admit(s, memory, []))),
        ("record_stream", "consumer", mock.patch.object(Tensor, "record_stream", return_value=None)),
        ("marks", "copies", mock.patch.object(cuda._CudaMark, "wait", return_value=True)),
    ):
        # On the host alone: elsewhere an index that came too early would break the device for all that follows.
        with guard:
            n = wrong_tensors(dataset, "host", late)
        figures[f"without {name}"] = n
        checks.see(n > 0, f"without {name} nothing is found wrong: this check has no teeth")
    return figures, checks.failures


def fork(folder: Path) -> Found:
    """A child that sleeps beside the loader, and one that drops it."""
    checks, dataset = Checks(), rows(folder, n=3001)
    with st.StreamLoader(dataset, batch_size=100, memory="96MB", lanes=16, seed=3) as loader:
        expected = [batch.y.clone() for _ in range(2) for batch in loader]
    warnings.simplefilter("ignore", DeprecationWarning)
    for pool in POOLS:
        found, children = [], []
        loader = loader_on(dataset, pool)
        for epoch in range(2):
            batches = iter(loader)
            for i, batch in enumerate(batches):
                found.append(batch.y.clone())
                if epoch == 0 and i in (1, 5):
                    children.append(os.fork())
                    if not children[-1]:
                        if i == 1:
                            time.sleep(5)
                            os._exit(0)
                        # The batch itself is the caller's, and stays.
                        dropped = weakref.ref(loader)
                        del loader, batches
                        gc.collect()
                        os._exit(0 if dropped() is None else 3)
        loader.close()
        wrong = sum(not torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        checks.see(wrong == 0, f"{pool}: {wrong} batches are wrong beside a child")
        for child in children:
            checks.see(os.waitpid(child, 0)[1] == 0, f"{pool}: a child did not end well")
    return {}, checks.failures


def memory(folder: Path) -> Found:
    """Reserved memory against the projection, over loaders and over epochs."""
    (checks, figures), dataset = start(), rows(folder)
    for pool in POOLS:
        for size in (7, 256, 4000):
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            torch.cuda.reset_peak_memory_stats()
            with st.StreamLoader(
                dataset, batch_size=size, memory="512MB", device=Placement(device="cuda", pool=pool)
            ) as loader:
                for batch in (batch for _ in range(2) for batch in loader):
                    del batch
                taken = torch.cuda.max_memory_reserved() - before
                planned = loader.projection.terms["device"]
            figures[f"{pool}, {size}: MiB of"] = f"{taken / MIB:.0f} {planned / MIB:.0f}"
            checks.see(taken <= planned, f"{pool}, batches of {size}: {taken} bytes taken, {planned} planned")
        reserved = []
        for _ in range(40):
            with loader_on(dataset, pool) as loader:
                for _, batch in zip(range(30), loader, strict=False):
                    del batch
            reserved.append(torch.cuda.memory_reserved())
        checks.see(reserved[-1] <= reserved[1] + 2 * MIB, f"{pool}: loaders leave memory behind: {reserved[1::13]}")
    trainer = st.Trainer(nn.Sequential(nn.Flatten(), nn.Linear(600, 2)), loss="cross_entropy", inputs="x", target="y")
    held: list[int] = []
    with labelled(folder) as (train, val):
        trainer.fit(
            train, val=val, max_epochs=6, progress=False, on_epoch=lambda _: held.append(torch.cuda.memory_reserved())
        )
    figures["MiB after epochs"] = [n // MIB for n in held]
    checks.see(held[-1] <= held[1], f"memory grows over epochs: {held}")
    return figures, checks.failures


@contextlib.contextmanager
def labelled(folder: Path) -> Iterator[tuple[st.StreamLoader, st.StreamLoader]]:
    """Loaders for training and validation, both shuffled."""
    x = np.random.default_rng(0).normal(size=(6000, 600)).astype(np.float32)
    data = st.ingest({"x": x, "y": (x[:, 0] > 0).astype(np.int64)}, folder / "l.zarr", block="24KB", progress=False)
    how: dict[str, Any] = {"batch_size": 100, "memory": "96MB", "device": "cuda"}
    with st.StreamLoader(data, **how) as train, st.StreamLoader(data, seed=1, **how) as val:
        yield train, val


def failures(folder: Path) -> Found:
    """Refusals and errors of the device, and the ways to end."""
    (checks, figures), dataset = start(), rows(folder)
    accelerator = CudaAccelerator(torch.device("cuda"))
    locked = accelerator.page_locked(MIB)
    code = int(cuda._runtime().cudaHostRegister(locked.ctypes.data, MIB, 0))
    cuda._forget_error(accelerator.device)
    checks.see(code == 712, f"page-locking twice gave {code}")
    checks.see(float((torch.ones(1, device="cuda") + 1).item()) == 2, "an error of before came out at a kernel")
    checks.failures += too_small(dataset, figures)
    for name, body in ENDS.items():
        script = END_SCRIPT.format(root=str(ROOT), data=str(dataset.path), body=body)
        began = time.perf_counter()
        try:
            ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=40)
        except subprocess.TimeoutExpired:
            checks.see(False, f"{name}: it had not ended after 40 s")
            continue
        seconds = time.perf_counter() - began
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        figures[name] = f"{ended.returncode} after {seconds:.1f} s"
        wanted = {"assert": 1, "Ctrl-C": -signal.SIGINT}.get(name, 0)
        checks.see(ended.returncode == wanted, f"{name}: exit code {ended.returncode}, {last}")
        if name == "assert":
            is_first = "device-side assert" in ended.stderr and "DeviceError" not in ended.stderr
            checks.see(is_first, f"what is shown is not the assert alone: {last}")
    return figures, checks.failures


def too_small(dataset: Dataset, figures: dict[str, Any]) -> list[str]:
    """Give the process little of the device, and train with the budget that the refusal names."""
    how: dict[str, Any] = {"batch_size": 4000, "device": Placement(device="cuda", pool="device")}
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 56 * MIB) / total)
    try:
        st.StreamLoader(dataset, memory="512MB", **how).close()
        return ["a device too small for the loader was not told"]
    except st.DeviceError as error:
        fix = error.fix
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    named = fix.argument("memory") if isinstance(fix, st.errors.Fix) else None
    figures["told"] = str(fix)
    return [] if named is not None and named.n_bytes else [f"no budget is named: {fix}"]


ENDS: Final = {
    "early break": "break",
    "queued sleep": "torch.cuda._sleep(1_500_000_000); break",
    "exit without close": "kept.append(iter(st.StreamLoader(loader.dataset, device='cuda'))); next(kept[0]); break",
    "assert": "nn.functional.nll_loss(torch.zeros(4, 3).cuda(), torch.full((4,), 9).cuda()).item()",
    "Ctrl-C": "signal.raise_signal(signal.SIGINT)",
}
END_SCRIPT: Final = """
import signal, sys; sys.path.insert(0, {root!r})
import torch
from torch import nn
import streamtrain as st
kept = []
with st.StreamLoader(st.open({data!r}), batch_size=50, memory="96MB", device="cuda") as loader:
    for batch in loader:
        {body}
"""


def parity(folder: Path) -> Found:
    """Weights after training from the host, from either pool, and after a resume."""
    checks, figures = start()
    x = np.random.default_rng(0).normal(size=(6000, 196)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    data = st.ingest({"x": x, "y": y}, folder / "d.zarr", block="24KB", progress=False)
    weights = {device: trained(data, device) for device in (None, *POOLS)}
    for pool in POOLS:
        checks.see(torch.equal(weights[None], weights[pool]), f"{pool}: other weights than without device=")
    odd = st.ingest({"x": x[:, :3], "y": y}, folder / "odd.zarr", block="4KB", progress=False)
    same = torch.equal(trained(odd, None, batch_size=50), trained(odd, "device", batch_size=50))
    figures["50 rows of 12 bytes, which begin at odd addresses"] = "equal" if same else "not equal bit for bit"
    run = folder / "run"
    trained(data, "device", max_steps=35, checkpoint=run)
    resumed = trained(data, "device", checkpoint=run, resume="auto")
    checks.see(torch.equal(resumed, weights["device"]), "a resumed run has other weights")
    return figures, checks.failures


def trained(data: Dataset, pool: Any, *, batch_size: int = 256, **how: Any) -> Tensor:
    """The weights after two epochs of a small network."""
    torch.manual_seed(0)
    n = data.layout.fields[0].shape[0]
    model = nn.Sequential(nn.Linear(n, 64), nn.ReLU(), nn.Linear(64, 2))
    trainer = st.Trainer(model, loss="cross_entropy", optimizer="adam", device="cuda")
    device = None if pool is None else Placement(device="cuda", pool=pool)
    warnings.simplefilter("ignore")
    with st.StreamLoader(data, batch_size=batch_size, memory="96MB", seed=4, device=device) as loader:
        trainer.fit(loader, max_epochs=2, progress=False, **how)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).cpu()


def speed(folder: Path) -> Found:
    """The benchmark of the bus, shortly, and the trainer's own figure of its stall."""
    checks, figures = start()
    command = [sys.executable, str(ROOT / "scripts/bench/device.py"), "--size", "1GB", "--memory", "300MB"]
    ended = subprocess.run([*command, "--repeats", "2"], capture_output=True, text=True, timeout=140)
    checks.see(ended.returncode == 0, f"the benchmark ended with {ended.returncode}")
    for result in map(json.loads, ended.stdout.splitlines()):
        name = f"{result['row_bytes']} B, {result['way']}"
        figures[f"{name}: ÷ bus, stall"] = f"{result['ratio_to_bus']} {result['stall_fraction']}"
        checks.see(result["ratio_to_bus"] <= 1.02, f"{name}: faster than the bus, so something is not waited for")
        if result["way"] == "device":
            checks.see(result["ratio_to_bus"] >= 0.6, f"{name}: {result['ratio_to_bus']} of the bus")
            checks.see(result["stall_fraction"] <= 0.05, f"{name}: stalls {result['stall_fraction']}")
    return figures, checks.failures


def step(folder: Path) -> Found:
    """Launches and waits of training steps, by torch's profiler."""
    checks, figures = start()
    from torch.profiler import ProfilerActivity, profile

    with labelled(folder) as (train, _):
        model = nn.Sequential(*(nn.Linear(600, 600) for _ in range(80)), nn.Linear(600, 2, bias=False))
        trainer = st.Trainer(model, loss="cross_entropy", lr=1e-4)
        trainer.fit(train, max_steps=5, progress=False)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
            trainer.fit(train, max_steps=55, progress=False)
    counted = {event.key: event.count for event in found.key_averages()}
    waits = sum(n for name, n in counted.items() if "Synchronize" in name)
    figures["launches a step"] = round(counted.get("cudaLaunchKernel", 0) / 50, 1)
    figures["waits a step"] = round(waits / 50, 2)
    checks.see(figures["waits a step"] <= 3, f"{figures['waits a step']} waits a step")
    return figures, checks.failures


def graphs(folder: Path) -> Found:
    """Captures beside a loader that runs: the kind that looks at its own thread alone, and the default one."""
    (checks, figures), dataset = start(), rows(folder)
    with st.StreamLoader(dataset, batch_size=100, memory="96MB", lanes=16, seed=3) as loader:
        expected = [batch.y.clone() for _ in range(4) for batch in loader]
    x = torch.ones(64, device="cuda")
    for mode in ("thread_local", "global"):
        found = []
        with loader_on(dataset, "device") as loader:
            for i, batch in enumerate(batch for _ in range(4) for batch in loader):
                found.append(batch.y.clone())
                if i % 60 == 5:
                    figures[mode] = captured(x, mode)
        wrong = sum(not torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
        checks.see(wrong == 0, f"{mode}: {wrong} batches are wrong")
    checks.see(figures["thread_local"] == "captured", f"thread_local: {figures['thread_local']}")
    return figures, checks.failures


def captured(x: Tensor, mode: str) -> str:
    """Capture a small graph while the loader's threads are at work."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode=mode):
            for _ in range(50):
                x = x * 1.0001
                time.sleep(0.001)
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return f"failed: {str(error).splitlines()[0][:80]}"
    return "captured"


STEPS: Final[dict[str, Callable[[Path], Found]]] = {
    "facts": facts,
    "hand-over": hand_over,
    "races": races,
    "fork": fork,
    "memory": memory,
    "failures": failures,
    "parity": parity,
    "speed": speed,
    "step": step,
    "graphs": graphs,
}
