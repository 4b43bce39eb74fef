"""Waiting for a rank that is slow, and for one that is gone or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from streamtrain.optim.ranks import heartbeat
from streamtrain.optim.ranks.heartbeat import Heartbeat, Silent


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> tuple[Heartbeat, Heartbeat]:
    monkeypatch.setattr(heartbeat, "_LOOK_EVERY", 0.02)
    monkeypatch.setattr(heartbeat, "_BEAT_EVERY", 0.02)
    monkeypatch.setattr(Heartbeat, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(Heartbeat, "HANGS_SECONDS", 0.6)
    store = dist.HashStore()
    first, other = (Heartbeat(lambda: store, "a", rank, 2) for rank in (0, 1))
    return first, other


def while_waited_for(first: Heartbeat, act: Callable[[], Any], then: Callable[[], Any] = lambda: None) -> None:
    worker = threading.Thread(target=act)
    worker.start()
    try:
        first.wait_for_all(lambda: None)
    finally:
        then()
        worker.join()


def test_a_slow_rank_that_is_at_work_is_waited_for(pair: tuple[Heartbeat, Heartbeat]) -> None:
    first, other = pair

    def work() -> None:
        with other.beating():
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                sum(range(1000))
            other.wait_for_all(lambda: None)
            other.wait_for_all(lambda: None)

    while_waited_for(first, work, lambda: first.wait_for_all(lambda: None))


def test_a_rank_whose_signs_of_life_end_is_gone(pair: tuple[Heartbeat, Heartbeat]) -> None:
    first, other = pair
    other._store().set("streamtrain/at/a/beat/1", "7 1.5")
    with pytest.raises(Silent, match=r"no sign of life for 0\.?\d* s") as caught:
        first.wait_for_all(lambda: None)
    assert caught.value.ranks == [1]


def test_a_rank_that_does_nothing_hangs(pair: tuple[Heartbeat, Heartbeat]) -> None:
    first, other = pair
    released = threading.Event()

    def hang() -> None:
        with other.beating():
            released.wait()

    with pytest.raises(Silent, match="has done nothing for") as caught:
        while_waited_for(first, hang, released.set)
    assert caught.value.ranks == [1]


def test_what_another_rank_has_told_ends_the_wait(pair: tuple[Heartbeat, Heartbeat]) -> None:
    with pytest.raises(ValueError, match="told"):
        pair[0].wait_for_all(lambda: ValueError("told"))


def test_a_store_that_does_not_answer_is_given_up(pair: tuple[Heartbeat, Heartbeat]) -> None:
    released = threading.Event()
    with pytest.raises(Silent, match="has not answered"):
        pair[0].ask(released.wait, 0.1)
    released.set()
