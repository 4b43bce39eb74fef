"""Lifecycle events of a loader, published for the meters."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from streamtrain.store.dataset import Dataset
from streamtrain.system.events import (
    DeviceMemory,
    EpochBegan,
    EpochEnded,
    LoaderClosed,
    LoaderOpened,
    ThreadSeconds,
    has_subscribers,
    next_loader_id,
    publish_around,
    publish_event,
)
from streamtrain.system.memory import Projection, device_bytes, held_bytes

_LOOK_SECONDS: Final = 0.05


class ObservedLoader(Protocol):
    """A loader as its telemetry sees it."""

    @property
    def batch_size(self) -> int: ...
    @property
    def dataset(self) -> Dataset: ...
    @property
    def projection(self) -> Projection: ...

    @property
    def wait_seconds(self) -> float:
        """Seconds its consumer has waited, over its whole life."""

    @property
    def work(self) -> ThreadSeconds:
        """Seconds its threads have worked, over its whole life."""


class LoaderTelemetry:
    """Publishes the events of one loader; made before the loader takes any memory."""

    def __init__(self) -> None:
        self._number = next_loader_id()
        self._held_bytes = held_bytes() if has_subscribers() else 0
        self._looked = 0.0
        self._is_open = False

    def opened(self, loader: ObservedLoader) -> None:
        """Publish that the loader was made, and the memory it may take."""
        self._is_open = True
        publish_event(
            LoaderOpened(
                loader=self._number,
                dataset=str(loader.dataset.path),
                n_samples=len(loader.dataset),
                batch_size=loader.batch_size,
                budget_bytes=loader.projection.budget_bytes,
                terms=dict(loader.projection.terms),
                held_bytes=self._held_bytes,
            )
        )

    def closed(self) -> None:
        """Publish that the loader is closed, once."""
        if self._is_open:
            publish_event(LoaderClosed(loader=self._number))
        self._is_open = False

    def epoch(self, loader: ObservedLoader, epoch: int, taken: Callable[[], int]) -> AbstractContextManager[None]:
        """Publish an epoch's beginning and, however it comes, its end, with ``taken()`` samples."""
        started, waited, work = time.perf_counter(), loader.wait_seconds, loader.work

        def ended() -> EpochEnded:
            return EpochEnded(
                loader=self._number,
                epoch=epoch,
                n_samples=taken(),
                seconds=time.perf_counter() - started,
                wait_seconds=loader.wait_seconds - waited,
                work=loader.work - work,
            )

        return publish_around(EpochBegan(loader=self._number, epoch=epoch), ended)

    def look(self, registered_bytes: int = 0) -> None:
        """Publish pinned and device memory now and then, if anybody listens."""
        if has_subscribers() and time.perf_counter() - self._looked >= _LOOK_SECONDS:
            self._looked = time.perf_counter()
            pinned, on_devices = device_bytes()
            if pinned or on_devices or registered_bytes:
                held = {"pinned_bytes": pinned, "device_bytes": on_devices, "registered_bytes": registered_bytes}
                publish_event(DeviceMemory(**held))
