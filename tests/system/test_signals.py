"""SIGTERM at once and signals held back, in this process."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from streamtrain.system.signals import Interrupted, defer_signals, terminated_cleanly


def test_sigterm_interrupts_at_once_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"^interrupted by SIGTERM$") as caught, terminated_cleanly():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_first_signal_is_held_back_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with defer_signals() as interrupts:
        interrupts.stop(interrupts.number, None)
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.number == signal.SIGTERM
        with pytest.raises(Interrupted, match="interrupted by SIGTERM; saved run/3"):
            interrupts.stop(interrupts.number, Path("run/3"))
        with pytest.raises(Interrupted, match="interrupted by SIGINT"):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_launcher_hands_on_the_signal_that_its_ranks_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with defer_signals() as interrupts:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert interrupts.number == signal.SIGTERM
        later = time.monotonic() + 3
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_was_ignored_on_purpose_stays_ignored() -> None:
    # Whoever runs the tests may have SIGHUP ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with defer_signals() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.stop(interrupts.number, None)
            signal.raise_signal(signal.SIGHUP)
            assert interrupts.number == signal.SIGHUP
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
