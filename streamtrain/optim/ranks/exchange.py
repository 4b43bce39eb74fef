"""The exchange between the ranks of a training: sums of numbers and gradients, objects, and the reason of a failure.

Every sum of numbers carries along whether a rank was asked to stop, so that all ranks stop at the same step.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from streamtrain import errors
from streamtrain.errors import DivergedError, StallError, StreamtrainError, UsageError, first_line
from streamtrain.optim.ranks.heartbeat import Heartbeat, Silent, place_of_processes
from streamtrain.system.signals import Interrupted

_T = TypeVar("_T")


class Exchange:
    """One process, which has nobody to exchange anything with."""

    rank = 0
    world_size = 1
    # Seconds spent waiting for the other ranks.
    seconds = 0.0

    def __init__(self) -> None:
        # The number of the signal that asked this process to stop, or None.
        self.asked: Callable[[], int | None] = lambda: None

    def add(self, values: Sequence[float]) -> list[float]:
        """Add numbers over the ranks."""
        return list(values)

    def add_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors over the ranks, in place."""

    def meet(self) -> None:
        """Wait until all ranks are here, as long as those that are not are at work."""

    def gather(self, value: _T) -> list[_T]:
        """Give the values of all ranks to each."""
        return [value]

    def to_first(self, value: _T) -> list[_T] | None:
        """Give the values of all ranks to the first; None to others."""
        return [value]

    def copy_of_first(self, tensors: Sequence[Tensor]) -> None:
        """Put the first rank's values into the tensors of all."""

    def of_first(self, make: Callable[[], _T]) -> _T:
        """Give what the first rank makes, or raise its error."""
        return make()

    def asked_to_stop(self) -> int | None:
        """Return the signal by which any rank was asked to stop, the same on all."""
        return self.asked()

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Let the other ranks know why this one fails in the block."""
        yield


ALONE: Final = Exchange()

_LARGE_BYTES: Final = 1 << 20
"""Tensors from here on are added one by one, without a copy."""
_LOOK_SECONDS: Final = 5.0
_LOOK_EVERY: Final = 0.05
_LOOK_WAITING: Final = timedelta(seconds=1)
_FAILED: Final = "streamtrain/failed/"
_READ: Final = "streamtrain/read/"
_SIGNAL: Final = "signal"
_SIGNALS: Final = (2, 15, 1)
_hearts: Final = WeakKeyDictionary[Any, tuple[Heartbeat, list[str]]]()
"""Of each process group: its ranks' signs of life, and where their processes run."""


class RankExchange(Exchange):
    """The ranks of torch.distributed's process group, on gloo or NCCL.

    Raises
    ------
    StreamtrainError
        Of any call: another rank has failed. It is the other's error, or a StallError where that rank is gone.
    Interrupted
        Of any call: a signal has ended another rank.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        distributed: Any = sys.modules["torch.distributed"]
        self._distributed = distributed
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        is_on_cuda = "nccl" in distributed.get_backend()
        on_cuda = device if device is not None and device.type == "cuda" else torch.device("cuda")
        self._device = on_cuda if is_on_cuda else torch.device("cpu")
        # Objects go through host memory.
        self._of_objects = distributed.new_group(backend="gloo") if is_on_cuda else None
        self._heard: int | None = None
        self._is_heard = False
        self._heart, self._places = self._heart_of_group()

    def _heart_of_group(self) -> tuple[Heartbeat, list[str]]:
        """Return the signs of life of the process group, which all of its ranks begin to give together."""
        group = self._distributed.group.WORLD
        if group not in _hearts:
            found: list[Any] = [None] * self.world_size
            own = (uuid.uuid4().hex, place_of_processes(), os.getpid(), platform.node())
            self._distributed.all_gather_object(found, own, group=self._of_objects)
            near = {rank: pid for rank, (_, place, pid, _) in enumerate(found) if place is not None and place == own[1]}
            heart = Heartbeat(self._store, found[0][0], self.rank, self.world_size, near)
            _hearts[group] = heart, [f"process {pid} on {host}" for _, _, pid, host in found]
        return _hearts[group]

    def add(self, values: Sequence[float]) -> list[float]:
        own = self.asked()
        flags = [float(own == number) for number in _SIGNALS]
        sums = torch.tensor([*flags, *values], dtype=torch.float64, device=self._device)
        self._all(lambda: self._wait_for([self._distributed.all_reduce(sums, async_op=True)]))
        found: list[float] = sums.tolist()
        asked = [number for number, n_ranks in zip(_SIGNALS, found, strict=False) if n_ranks]
        self._heard, self._is_heard = asked[0] if asked else None, True
        return found[len(_SIGNALS) :]

    def asked_to_stop(self) -> int | None:
        if not self._is_heard:
            self.add(())
        self._is_heard = False
        return self._heard

    def add_tensors(self, tensors: Sequence[Tensor]) -> None:
        small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        whole: list[Tensor] = []
        for tensor in tensors:
            if tensor.numel() * tensor.element_size() >= _LARGE_BYTES and tensor.is_contiguous():
                whole.append(tensor)
            else:
                small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        joined = [torch.cat([each.reshape(-1) for each in some]) for some in small.values()]

        def add_all() -> None:
            self._wait_for([self._distributed.all_reduce(each, async_op=True) for each in (*whole, *joined)])

        self._all(add_all)
        for some, flat in zip(small.values(), joined, strict=True):
            parts = torch.split(flat, [each.numel() for each in some])
            torch._foreach_copy_(some, [part.view_as(each) for part, each in zip(parts, some, strict=True)])

    def gather(self, value: _T) -> list[_T]:
        found: list[Any] = [None] * self.world_size
        self.meet()
        self._all(lambda: self._distributed.all_gather_object(found, value, group=self._of_objects))
        return found

    def to_first(self, value: _T) -> list[_T] | None:
        found: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        self.meet()
        self._all(lambda: self._distributed.gather_object(value, found, dst=0, group=self._of_objects))
        return found

    def copy_of_first(self, tensors: Sequence[Tensor]) -> None:
        def copy_all() -> None:
            given = [each for each in tensors if isinstance(each, Tensor)]
            self._wait_for([self._distributed.broadcast(each, src=0, async_op=True) for each in given])

        self._all(copy_all)

    def of_first(self, make: Callable[[], _T]) -> _T:
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = make()
            except StreamtrainError as error:
                made[1] = error
        self.meet()
        self._all(lambda: self._distributed.broadcast_object_list(made, src=0, group=self._of_objects))
        if made[1] is not None:
            raise made[1]
        value: _T = made[0]
        return value

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        with suppress(RuntimeError, ValueError):
            # What an earlier attempt left, and its caller has dealt with.
            for key in (_FAILED, _READ):
                self._store().delete_key(f"{key}{self.rank}")
        with self._heart.beating():
            try:
                yield
            except ToldByRank:
                # What another rank has told is told.
                raise
            except StreamtrainError as error:
                self._tell(error.to_json())
                raise
            except KeyboardInterrupt as interrupt:
                if not isinstance(interrupt, InterruptedElsewhere):
                    self._tell({_SIGNAL: getattr(interrupt, "number", int(signal.SIGINT))})
                raise
            except Exception as error:
                self._tell(StreamtrainError(f"{type(error).__name__}: {error}").to_json())
                raise

    def meet(self) -> None:
        self._all(lambda: self._heart.wait_for_all(self._told))

    def _all(self, act: Callable[[], None]) -> None:
        """Do what all ranks do at once; where one of them does not, raise its reason."""
        began = time.perf_counter()
        try:
            act()
        except (RuntimeError, ValueError) as error:
            raise self._failure(error) from error
        finally:
            self.seconds += time.perf_counter() - began

    def _wait_for(self, begun: Sequence[Any]) -> None:
        """Wait for the parts of an exchange; look now and then whether another rank has failed, and still runs."""
        for each in begun:
            while self._device.type == "cpu" and not each.is_completed():
                try:
                    each.wait(_LOOK_WAITING)
                except RuntimeError:
                    if each.is_completed():
                        raise
                    if (error := self._heart.ask(self._told, _LOOK_SECONDS)) is not None:
                        raise error from None
            each.wait()

    def _tell(self, told: dict[str, Any]) -> None:
        """Tell the others why this rank fails; the first, which may hold the store, ends once they have read it."""

        def tell() -> None:
            store = self._store()
            store.set(f"{_FAILED}{self.rank}", json.dumps(told))
            if self.rank == 0 and self._heart.is_outermost:
                until, left = time.monotonic() + _LOOK_SECONDS, set(self._others)
                while left and time.monotonic() < until:
                    left = {each for each in left if not any(store.check([f"{of}{each}"]) for of in (_READ, _FAILED))}
                    time.sleep(_LOOK_EVERY)

        # A store that cannot be reached is gone with the rank that held it.
        with suppress(RuntimeError, ValueError):
            self._heart.ask(tell, _LOOK_SECONDS + 1)

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank != self.rank]

    def _told(self) -> BaseException | None:
        """Return what another rank has told that it ends by."""
        store = self._store()
        for rank in self._others:
            if store.check([f"{_FAILED}{rank}"]):
                found = _told_by(rank, json.loads(store.get(f"{_FAILED}{rank}")))
                store.set(f"{_READ}{self.rank}", "")
                return found
        return None

    def _failure(self, error: Exception) -> BaseException:
        """Find the reason why another rank does not take part."""
        named, why = self._others, f"It left no reason. torch says: {first_line(error)[:200]}"
        if isinstance(error, Silent):
            named, why = error.ranks, error.why
        else:
            # A store that is gone is not asked again: torch prints a page each time.
            with suppress(RuntimeError, ValueError):
                if (found := self._heart.ask(self._look_a_while, _LOOK_SECONDS + 1)) is not None:
                    return found
        listed, places = ", ".join(map(str, named)), "; ".join(self._places[rank] for rank in named)
        return _Gone(
            f"rank {listed} is gone or silent" if len(named) == 1 else f"one of the ranks {listed} is gone or silent",
            why=f"{why} ({places})",
            fix="its own output tells more; then resume the run",
        )

    def _look_a_while(self) -> BaseException | None:
        until, found = time.monotonic() + _LOOK_SECONDS, self._told()
        while found is None and time.monotonic() < until:
            time.sleep(_LOOK_EVERY)
            found = self._told()
        return found

    def _store(self) -> Any:
        return self._distributed.distributed_c10d._get_default_store()


class ToldByRank(StreamtrainError):
    """The error of another rank."""


class _Gone(StallError):
    """A rank that is gone, or does nothing."""


class InterruptedElsewhere(Interrupted):
    """A signal that has ended another rank."""

    rank = 0

    def __str__(self) -> str:
        return f"rank {self.rank}: {super().__str__()}"


def _told_by(rank: int, told: dict[str, Any]) -> StreamtrainError | InterruptedElsewhere:
    """Make an error of the class of another rank's, which names the rank."""
    if _SIGNAL in told:
        interrupt = InterruptedElsewhere(int(told[_SIGNAL]))
        interrupt.rank = rank
        return interrupt
    known = getattr(errors, str(told["class"]), StreamtrainError)
    kind = next(each for each in known.__mro__ if "__init__" not in vars(each) or each is StreamtrainError)
    here = type(kind.__name__, (ToldByRank, kind), {"__module__": kind.__module__, "exit_code": int(told["code"])})
    where = f"rank {rank}: {told['where']}" if told["where"] else f"rank {rank}"
    found: StreamtrainError = here(told["what"], where=where, why=told["why"], fix=told["fix"])
    return found


OF_OTHERS: Final = (_Gone, ToldByRank, InterruptedElsewhere)
"""Errors of any call that another rank has failed."""


class DivergedElsewhere(DivergedError):
    """A loss that is not finite, of samples that another rank has."""


def refuse_sparse(parameters: Sequence[nn.Parameter]) -> None:
    """Refuse sparse gradients, which are not added over ranks."""
    if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in parameters):
        raise UsageError("sparse gradients cannot be added over ranks", fix="sparse=False where the layers are made")
