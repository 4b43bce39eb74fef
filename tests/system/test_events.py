"""Events: received by subscribers, written to a file for another process, published by loaders and trainers."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as strategies

import streamtrain as st
from streamtrain.system.events import (
    EVENT_TYPES,
    EVENTS_VARIABLE,
    DeviceMemory,
    EpochEnded,
    Event,
    LoaderClosed,
    LoaderOpened,
    RecordedEvent,
    ThreadSeconds,
    file_appender,
    has_subscribers,
    publish_event,
    read_events,
    subscribe,
)

VALUES: dict[str, strategies.SearchStrategy[Any]] = {
    "int": strategies.integers(0, 2**60),
    "float": strategies.floats(0, 1e9),
    "str": strategies.text(),
    "dict[str, int]": strategies.dictionaries(strategies.text(), strategies.integers(0, 2**60), max_size=3),
    "ThreadSeconds": strategies.builds(
        ThreadSeconds, **{field.name: strategies.floats(0, 1e6) for field in fields(ThreadSeconds)}
    ),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Any:
    generator = np.random.default_rng(0)
    source = {"x": generator.standard_normal((500, 8)).astype(np.float32), "y": generator.integers(0, 3, 500)}
    return st.ingest(source, tmp_path / "d.zarr", codec="lz4")


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


@given(data=strategies.data(), kind=strategies.sampled_from(sorted(EVENT_TYPES)), pid=strategies.integers(1, 2**22))
def test_every_event_survives_its_line(data: strategies.DataObject, kind: str, pid: int) -> None:
    values = {field.name: data.draw(VALUES[str(field.type)]) for field in fields(EVENT_TYPES[kind])}
    told = RecordedEvent(time=1.25, pid=pid, event=EVENT_TYPES[kind](**values))
    line = told.to_line()
    assert "\n" not in line
    assert RecordedEvent.from_line(line) == told


def test_a_line_is_json() -> None:
    line = '{"time": 1.5, "pid": 7, "event": "LoaderClosed", "loader": 1}'
    assert RecordedEvent(time=1.5, pid=7, event=LoaderClosed(loader=1)).to_line() == line


def test_seconds_are_summed_and_named() -> None:
    assert (ThreadSeconds(disk=3.0, decode=1.0) - ThreadSeconds(disk=0.5)).total == 3.5
    assert ThreadSeconds(gather=0.5).named("_seconds")["gather_seconds"] == 0.5


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "3", '{"event": "Unheard"}', '{"event": "LoaderClosed", "time": 1, "pid": 2}', "\x00"]
)
def test_what_is_no_event_is_passed_over(line: str) -> None:
    assert RecordedEvent.from_line(line) is None


WRONG: dict[str, list[object]] = {
    "int": ["7", 1.5, True, None, [1], {"a": 1}, -1, 10**400],
    "float": ["7", True, None, [1], math.nan, math.inf, -1.0, 10**400],
    "str": [7, None, ["a"]],
    "dict[str, int]": [[1], 7, "a", None, {"a": "b"}, {"a": 1.5}, {"a": None}, {"a": -1}],
    "ThreadSeconds": [[1], 7, None, {}, {"disk": 1.0}, dict.fromkeys(ThreadSeconds().named(), "1")],
}
WHOLE: dict[str, object] = {"int": 7, "float": 1.5, "str": "a", "dict[str, int]": {"a": 1}}


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_an_event_with_a_value_of_another_type_is_passed_over(kind: str) -> None:
    whole = {field.name: WHOLE.get(str(field.type), ThreadSeconds().named()) for field in fields(EVENT_TYPES[kind])}
    head: dict[str, object] = {"time": 1.0, "pid": 2, "event": kind}
    assert RecordedEvent.from_line(json.dumps(head | whole)) is not None
    types = {"time": "float", "pid": "int"} | {field.name: str(field.type) for field in fields(EVENT_TYPES[kind])}
    for name, of in types.items():
        for wrong in WRONG[of]:
            assert RecordedEvent.from_line(json.dumps(head | whole | {name: wrong})) is None, (name, wrong)


def test_an_event_of_a_later_version_may_say_more() -> None:
    line = '{"time": 1, "pid": 2, "event": "LoaderClosed", "loader": 3, "mood": "fine"}'
    assert RecordedEvent.from_line(line) == RecordedEvent(time=1.0, pid=2, event=LoaderClosed(loader=3))


def test_listeners_come_and_go() -> None:
    first: list[Event] = []
    second: list[Event] = []
    assert not has_subscribers()
    with subscribe(first.append):
        with subscribe(second.append):
            assert has_subscribers()
            publish_event(LoaderClosed(loader=1))
        publish_event(LoaderClosed(loader=2))
    publish_event(LoaderClosed(loader=3))
    assert first == [LoaderClosed(loader=1), LoaderClosed(loader=2)]
    assert second == [LoaderClosed(loader=1)]


def test_a_file_takes_events_in_order_of_time_and_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    append = file_appender(path)
    append(LoaderClosed(loader=1))
    append(LoaderClosed(loader=2))
    with path.open("a") as file:
        file.write('{"time": 0.5, "pid": 9, "event": "LoaderClosed", "loader": 7}\n{"time": 1.0, "pi')
    found = read_events(path)
    assert [told.event for told in found] == [LoaderClosed(loader=n) for n in (7, 1, 2)]
    assert found[1].pid == os.getpid()


def test_a_file_that_is_gone_disturbs_nobody(tmp_path: Path) -> None:
    file_appender(tmp_path / "gone" / "events.jsonl")(LoaderClosed(loader=1))
    file_appender(tmp_path / "events.jsonl")(LoaderClosed(loader=1))
    assert not list(tmp_path.iterdir()), "nothing is left behind for a profiler that has gone"
    assert read_events(tmp_path / "events.jsonl") == []


def test_a_process_appends_to_the_file_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.touch()
    code = "from streamtrain.system.events import *; publish_event(LoaderClosed(loader=5))"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, EVENTS_VARIABLE: str(path)})
    subprocess.run([sys.executable, "-c", code], check=True)
    (told,) = read_events(path)
    assert told.event == LoaderClosed(loader=5)
    assert told.pid != os.getpid()


def test_a_loader_tells_its_life(dataset: Any) -> None:
    heard: list[Any] = []
    with subscribe(heard.append), st.StreamLoader(dataset, batch_size=64, memory="16MB") as loader:
        for _ in range(2):
            list(loader)
        for _ in loader:
            break
        loader.close()
        projection = loader.projection
    began_and_ended = ["EpochBegan", "EpochEnded"]
    assert names(heard) == ["LoaderOpened", *(3 * began_and_ended), "LoaderClosed"]
    opened, ended = heard[0], [event for event in heard if isinstance(event, EpochEnded)]
    assert opened.budget_bytes == 16_000_000
    assert opened.terms == projection.terms
    assert (opened.dataset, opened.n_samples, opened.batch_size) == (str(dataset.path), 500, 64)
    assert opened.held_bytes > 5_000_000
    assert [event.epoch for event in ended] == [0, 1, 2]
    assert [event.n_samples for event in ended] == [500, 500, 64], "an epoch that is left early tells what it yielded"
    assert all(0 <= event.wait_seconds <= event.seconds for event in ended)
    assert ended[0].work.gather > 0
    assert ended[0].work.disk > 0
    assert ended[0].work.decode > 0
    assert ended[0].work.index > 0
    assert len({event.loader for event in heard}) == 1


def test_a_forgotten_loader_is_closed_too(dataset: Any) -> None:
    heard: list[Any] = []
    with subscribe(heard.append):
        for _ in range(2):
            next(iter(st.StreamLoader(dataset, batch_size=10, memory="16MB")))
            gc.collect()
        kinds = [type(event).__name__ for event in heard if type(event).__name__.startswith("Loader")]
    assert kinds == ["LoaderOpened", "LoaderClosed"] * 2, "budgets of loaders that are gone do not add up"


def test_two_loaders_have_two_numbers(dataset: Any) -> None:
    heard: list[Any] = []
    with subscribe(heard.append):
        for _ in range(2):
            st.StreamLoader(dataset, batch_size=64, memory="16MB").close()
    assert names(heard) == ["LoaderOpened", "LoaderClosed"] * 2
    assert heard[0].loader == heard[1].loader != heard[2].loader


def test_the_work_of_a_loader_is_the_sum_of_its_epochs(dataset: Any) -> None:
    heard: list[Event] = []
    with subscribe(heard.append), st.StreamLoader(dataset, batch_size=50, memory="16MB") as loader:
        before = loader.work
        list(loader)
        list(loader)
    ended = [event for event in heard if isinstance(event, EpochEnded)]
    assert before == ThreadSeconds()
    total = sum((event.work for event in ended), ThreadSeconds())
    # Reading goes on into the next epoch, which nobody has asked for.
    assert 0 < total.total <= loader.work.total
    assert all(seconds >= -1e-9 for seconds in asdict(loader.work).values())


def test_a_run_is_told_even_if_it_fails(dataset: Any) -> None:
    heard: list[Any] = []
    trainer = st.Trainer(torch.nn.Linear(8, 3), loss="cross_entropy", optimizer="sgd", lr=0.1)
    with st.StreamLoader(dataset, batch_size=64, memory="16MB") as loader, subscribe(heard.append):
        trainer.fit(loader, max_steps=3)
        with pytest.raises(RuntimeError, match="enough"):
            trainer.fit(loader, max_epochs=1, on_epoch=stop)
        n_steps = len(loader)
    runs = [event for event in heard if type(event).__name__.startswith("Run")]
    assert names(runs) == ["RunBegan", "RunEnded"] * 2
    assert [runs[1].n_steps, runs[3].n_steps] == [3, n_steps]


def stop(_: object) -> None:
    raise RuntimeError("enough")


def test_device_memory_is_told_now_and_then(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.loader.telemetry.device_bytes", lambda: (3, 5))
    heard: list[Event] = []
    with subscribe(heard.append), st.StreamLoader(dataset, batch_size=64, memory="16MB") as loader:
        list(loader)
    assert DeviceMemory(pinned_bytes=3, device_bytes=5) in heard
    assert isinstance(heard[0], LoaderOpened)
