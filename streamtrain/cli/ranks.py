"""The ranks that torchrun, or a launcher like it, started: their process group, what each prints, and how they end."""

from __future__ import annotations

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from streamtrain.errors import StallError, UsageError, first_line
from streamtrain.system.signals import DeferredSignals, defer_signals

_T = TypeVar("_T")
SHARED: Final = ("train", "evaluate")
"""Commands that ranks share; of plan and info the first rank prints, and the others do nothing."""
_READING: Final = ("plan", "info")
_started: Final = list[DeferredSignals]()
_SECONDS: Final = 360
"""After which a rank that does not answer is given up: longer than a loader waits for a read, which can tell more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Where this process is among those that were started together."""

    rank: int
    world_size: int
    local_rank: int


def launch() -> Launch | None:
    """Return what a launcher named in the environment; None where it started one process, or there is none."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    rank, world_size, address = (os.environ.get(name, "") for name in names)
    if not (rank.isdecimal() and world_size.isdecimal() and address) or int(world_size) < 2:
        return None
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return Launch(rank=int(rank), world_size=int(world_size), local_rank=int(local) if local.isdecimal() else 0)


def is_first() -> bool:
    """Say whether this process prints and writes for all."""
    found = launch()
    return found is None or found.rank == 0


def does_nothing(command: str) -> bool:
    """Say whether a rank leaves a command to the first one; refuse a command that ranks do not share."""
    found = launch()
    if found is None or command in SHARED:
        return False
    if command in _READING:
        return found.rank > 0
    raise UsageError(
        f"{command} was started as {found.world_size} ranks, which would all do the same",
        fix="start it without torchrun; --rows gives each of several processes rows of its own"
        if command == "predict"
        else "start it without torchrun",
    )


@contextmanager
def signals_held(words: Sequence[str]) -> Iterator[None]:
    """Hold signals back inside the block until this rank has joined the others, who are then told of them."""
    if launch() is None or not any(word in SHARED for word in words):
        yield
        return
    with defer_signals() as held:
        _started.append(held)
        try:
            yield
        finally:
            _started.remove(held)


def device_of_rank(device: str) -> str:
    """Give each rank of a host a CUDA device of its own."""
    import torch

    found = launch()
    if found is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{found.local_rank}"


@contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """Join the other ranks for the block, which all of them leave together, if it does not fail."""
    found = launch()
    if found is None:
        yield
        return
    distributed: Any = importlib.import_module("torch.distributed")
    if not distributed.is_available():
        raise UsageError(f"{found.world_size} ranks were started, and this torch has no torch.distributed")
    # Imported after the group, its functions have it as a default: it outlives destroy_process_group(), and a thread of
    # gloo that lets go of a tensor while Python ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    host, port = os.environ["MASTER_ADDR"], os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise UsageError("MASTER_ADDR without MASTER_PORT", fix="export MASTER_PORT=29500, the same for all ranks")
    # torchrun's own process holds the store.
    is_held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    torch: Any = importlib.import_module("torch")
    torch_device = torch.device(device if device.startswith("cuda") else "cpu")
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    timeout = timedelta(seconds=_SECONDS)
    with _named_where_late(found):
        _join(distributed, found, (host, int(port)), device, timeout, is_held=is_held)
    try:
        from streamtrain.optim.ranks.exchange import RankExchange

        exchange = RankExchange(torch_device)
        with exchange.failing_together():
            for held in _started:
                held.release()
            yield
            exchange.meet()
        # The first may hold the store: it does not leave before all have done with that.
        exchange.add(())
    finally:
        distributed.destroy_process_group()


@contextmanager
def _named_where_late(found: Launch) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise StallError(
            f"the {found.world_size} ranks have not come together",
            why=f"One did not start, or has ended. torch says: {first_line(error)[:200]}",
            fix="see what the others say",
        ) from error


def _join(
    distributed: Any, found: Launch, address: tuple[str, int], device: str, timeout: timedelta, *, is_held: bool
) -> None:
    """Make the process group."""
    store = distributed.TCPStore(*address, found.world_size, is_master=found.rank == 0 and not is_held, timeout=timeout)
    # A restart must not find the addresses of the attempt before it.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        "nccl" if device.startswith("cuda") else "gloo",
        store=distributed.PrefixStore(f"streamtrain/{attempt}", store),
        rank=found.rank,
        world_size=found.world_size,
        timeout=timeout,
    )


def of_first(make: Callable[[], _T]) -> _T:
    """Give what the first rank makes, or raise its error."""
    if launch() is None:
        return make()
    from streamtrain.optim.ranks.exchange import RankExchange

    return RankExchange().of_first(make)


def told_to_launcher(message: str, code: int) -> None:
    """Write an error where torchrun, whose own exit code is always 1, reads the cause for its summary."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not file:
        return
    extra: dict[str, Any] = {"py_callstack": "", "timestamp": str(int(time.time()))}
    told = {"message": {"message": f"{message} (exit code {code})", "extraInfo": extra, "errorCode": code}}
    with suppress(OSError):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(told))
