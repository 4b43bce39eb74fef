"""The profile of a run: figures by their definition, and drawings without surprises."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.diagnostics import charts
from streamtrain.diagnostics.profile_charts import (
    loader_rows,
    short_command,
    timeline_figure,
    timeline_summary,
    write_png,
)
from streamtrain.diagnostics.profile_command import CommandRecord, HeldMemory, MemorySample
from streamtrain.diagnostics.profile_report import profile_figures, profile_lines, profile_page, write_profile
from streamtrain.diagnostics.profile_timeline import build_timeline
from streamtrain.errors import UsageError
from streamtrain.system.events import (
    DeviceMemory,
    EpochBegan,
    EpochEnded,
    Event,
    LoaderClosed,
    LoaderOpened,
    RecordedEvent,
    Reserved,
    ThreadSeconds,
)

MB = 10**6
PYTHON = sys.executable


def held(anonymous: int, shared: int = 0, file: int = 0) -> HeldMemory:
    return HeldMemory(anonymous=anonymous * MB, shared=shared * MB, file=file * MB)


def opened(loader: int, budget: int, before: int, dataset: str = "d.zarr") -> LoaderOpened:
    return LoaderOpened(
        loader=loader,
        dataset=dataset,
        n_samples=100,
        batch_size=10,
        budget_bytes=budget * MB,
        terms={"lanes": budget * MB // 2, "batches": budget * MB // 4},
        held_bytes=before * MB,
    )


def watched(
    samples: list[tuple[float, dict[int, HeldMemory]]], events: list[tuple[float, int, Event]], **more: Any
) -> CommandRecord:
    """What a run of ten seconds that began at 100 saw; the times given count from its beginning."""
    given: dict[str, Any] = {
        "command": ("train", "d.zarr"),
        "exit_code": 0,
        "group_peak_bytes": None,
        "n_killed_for_memory": 0,
    }
    return CommandRecord(
        start=100.0,
        stop=110.0,
        samples=tuple(MemorySample(time=100.0 + at, held=each) for at, each in samples),
        events=tuple(RecordedEvent(time=100.0 + at, pid=pid, event=event) for at, pid, event in events),
        **given | more,
    )


EPOCH = EpochEnded(
    loader=1, epoch=0, n_samples=100, seconds=4.0, wait_seconds=1.0, work=ThreadSeconds(disk=1.0, gather=3.0)
)
RUN = watched(
    [(float(i), {7: held(n, shared=1, file=30), 8: held(2)}) for i, n in enumerate([50, 60, 90, 110, 100, 70, 65])],
    [
        (1.0, 7, opened(1, 64, before=61)),
        (1.5, 7, EpochBegan(loader=1, epoch=0)),
        (5.5, 7, EPOCH),
        (5.6, 7, LoaderClosed(loader=1)),
    ],
)


# From samples and events to figures.


def test_measured_is_the_peak_while_a_loader_is_open_less_what_was_before() -> None:
    (kept,) = build_timeline(RUN).kept
    assert (kept.budget_bytes, kept.projected_bytes, kept.held_bytes) == (64 * MB, 48 * MB, 61 * MB)
    assert kept.measured_bytes == (110 + 1 - 61) * MB
    assert kept.ratio == pytest.approx(50 / 64)
    assert (kept.start, kept.stop) == pytest.approx((1.0, 5.6))


def test_what_a_training_step_takes_is_not_the_loaders() -> None:
    reserved = [(0.5, 7, Reserved(held_bytes=80 * MB)), *((t.time - 100, t.pid, t.event) for t in RUN.events)]
    run = watched([(s.time - 100, s.held) for s in RUN.samples], reserved)
    assert build_timeline(run).kept[0].measured_bytes == (111 - 80) * MB


def test_pinned_and_device_memory_count_until_told_otherwise() -> None:
    told = [
        (1.0, 7, opened(1, 64, before=10)),
        (2.0, 7, DeviceMemory(pinned_bytes=5 * MB, device_bytes=20 * MB)),
        (4.0, 7, DeviceMemory(pinned_bytes=6 * MB, device_bytes=0)),
    ]
    found = build_timeline(watched([(float(i), {7: held(10)}) for i in range(6)], told))
    assert found.held["device"] == [0, 0, 20 * MB, 20 * MB, 0, 0]
    assert found.held["pinned"] == [0, 0, 5 * MB, 5 * MB, 6 * MB, 6 * MB]
    assert found.kept[0].measured_bytes == 25 * MB


def test_what_a_process_held_on_a_device_goes_with_it() -> None:
    told = [(0.0, 7, DeviceMemory(pinned_bytes=0, device_bytes=20 * MB))]
    found = build_timeline(watched([(0.5, {7: held(1), 8: held(1)}), (1.0, {8: held(1)})], told))
    assert found.held["device"] == [20 * MB, 0]


def test_loaders_together_share_a_line_and_those_apart_have_their_own() -> None:
    told = [
        (0.0, 7, opened(1, 48, before=10)),
        (0.1, 7, opened(2, 16, before=11, dataset="val.zarr")),
        (3.0, 7, LoaderClosed(loader=1)),
        (3.1, 7, LoaderClosed(loader=2)),
        (4.0, 7, opened(3, 30, before=20)),
        (4.0, 8, opened(1, 99, before=5)),
    ]
    found = build_timeline(watched([(float(i), {7: held(20 + i), 8: held(6)}) for i in range(7)], told))
    assert [(kept.pid, kept.budget_bytes // MB, kept.measured_bytes // MB) for kept in found.kept] == [
        (7, 64, 13),
        (7, 30, 6),
        (8, 99, 1),
    ]
    assert found.loaders[2].stop == 6.0, "a loader that is never closed ends with its process"
    (first, second, _) = found.levels(lambda kept: 0)
    assert (first.n_bytes, second.n_bytes) == (16 * MB, 26 * MB), "a level stands on what other processes hold"


@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10), st.integers(1, 9)), min_size=1, max_size=6),
    values=st.lists(st.integers(0, 99), min_size=60, max_size=60),
)
def test_figures_follow_from_their_definition(pieces: list[tuple[int, int, int]], values: list[int]) -> None:
    told: list[tuple[float, int, Event]] = []
    for number, (start, length, budget) in enumerate(pieces):
        told += [
            (start + 0.5, 7, opened(number, budget, before=3)),
            (start + length + 0.4, 7, LoaderClosed(loader=number)),
        ]
    run = watched([(float(i), {7: held(n)}) for i, n in enumerate(values)], sorted(told, key=lambda each: each[0]))
    found = build_timeline(run).kept
    open_at = [[b for start, n, b in pieces if start < i <= start + n] for i in range(60)]
    assert max(kept.budget_bytes for kept in found) == max(map(sum, open_at)) * MB
    peak = max(value for value, budgets in zip(values, open_at, strict=True) if budgets)
    assert max(kept.measured_bytes for kept in found) == max(peak - 3, 0) * MB
    assert all(a.stop <= b.start for a, b in pairwise(sorted(found, key=lambda kept: kept.start)))


def test_the_figures_have_everything_by_name() -> None:
    found = profile_figures(build_timeline(RUN))
    assert found["memory"] == [
        {"pid": 7, "budget": 64 * MB, "projected": 48 * MB, "measured": 50 * MB, "before": 61 * MB, "ratio": 50 / 64}
    ]
    assert found["peak"] == {
        **{"held": 113 * MB, "anonymous": 112 * MB, "shared": MB, "pinned": 0, "device": 0},
        **{"file": 30 * MB, "cgroup": None},
    }
    assert found["epochs"][0]["thread_seconds"]["gather"] == 3.0
    text = "\n".join(profile_lines(build_timeline(RUN)))
    assert "budget 64.0 MB, projected 48.0 MB, measured 50.0 MB (78.1% of the budget)" in text
    assert "25.0% waiting for data" in text
    assert "disk 25.0%, gather 75.0%" in text


def test_a_command_killed_for_memory_is_told_so() -> None:
    killed = watched([], [], exit_code=137, n_killed_for_memory=1)
    assert "out of memory" in profile_lines(build_timeline(killed))[-2]
    assert not any("killed" in line for line in profile_lines(build_timeline(watched([], [], exit_code=137))))
    child = profile_lines(build_timeline(watched([], [], exit_code=1, n_killed_for_memory=2)))
    assert any("2 processes" in line for line in child)


def test_a_command_without_loaders_has_no_budget() -> None:
    found = build_timeline(watched([(0.0, {7: held(5)})], []))
    assert profile_figures(found)["memory"] == []
    assert "no streamtrain loader" in profile_lines(found)[-1]
    assert "waiting" not in profile_page(found), "what is not drawn has no key"


def test_a_command_too_short_to_be_read_has_no_peak() -> None:
    found = build_timeline(watched([(0.0, {})], []))
    assert profile_lines(found)[2] == "peak    unknown: it ended before its memory could be read"
    assert timeline_summary(found) == "it ended before its memory could be read"


def test_a_command_of_several_lines_is_told_in_one() -> None:
    found = build_timeline(watched([], [], command=("python", "-c", "a = 1\nb = 2")))
    assert (
        short_command(found.watched.command)
        == profile_lines(found)[0].removeprefix("command ")
        == "python -c 'a = 1 b = 2'"
    )


def test_a_long_command_stays_inside_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []

    def look(figure: Any, *_: object) -> None:
        figure.draw_without_rendering()
        drawn.append((figure._suptitle.get_window_extent().x1, figure.bbox.width))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", look)
    write_png(build_timeline(watched([], [], command=("w" * 300,))), tmp_path / "wide.png")
    ((end, width),) = drawn
    assert end <= width


# Drawings.


EVIL = "<script>alert(1)</script>&\"'$x$.zarr"


def evil_run() -> CommandRecord:
    return watched(
        [(s.time - 100, s.held) for s in RUN.samples],
        [(1.0, 7, opened(1, 64, 61, dataset=EVIL)), *((t.time - 100, t.pid, t.event) for t in RUN.events[1:])],
        command=("train", EVIL),
    )


def test_the_page_shows_epochs_and_levels() -> None:
    page = profile_page(build_timeline(RUN))
    for word in ("budget", "projected", "held before the loader", "anonymous", "share of an epoch spent waiting"):
        assert f">{word}</text>" in page, word
    assert "budget 64.0 MB, projected 48.0 MB, measured 50.0 MB (78.1% of the budget)</td>" in page
    row = [f"<td>{cell}</td>" for cell in ("d.zarr", "1", "100", "4.0 s", "25.0%", "1.0 s")]
    assert "".join(row) in page


@pytest.mark.parametrize(
    "run", [RUN, evil_run(), watched([], []), watched([(0.0, {})], []), watched([(0.0, {7: held(9000)})], [])]
)
def test_everything_can_be_drawn(run: CommandRecord, tmp_path: Path) -> None:
    files = write_profile(build_timeline(run), tmp_path / "p")
    assert [file.name for file in files] == ["timeline.png", "timeline.html", "profile.json"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert files[1].read_text().count("<svg") == 1
    assert sorted(tmp_path.joinpath("p").iterdir()) == sorted(files)


def test_rows_hold_loaders_that_follow_each_other() -> None:
    told = [
        (float(at), 7, event)
        for number in range(3)
        for at, event in (
            (number, opened(number, 9, 1, dataset="/data/" + "long" * 20 + ".zarr")),
            (number + 1, LoaderClosed(loader=number)),
        )
    ]
    timeline = build_timeline(watched([(0.0, {7: held(1)})], told))
    (row,) = loader_rows(timeline.loaders)
    assert len(row) == 3
    (label,) = timeline_figure(timeline).axes[1].get_yticklabels()
    assert label.get_text() == "…" + ("long" * 20 + ".zarr")[-23:]


def test_without_matplotlib_the_png_is_refused_and_the_page_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'streamtrain\[plot\]', or png=False"):
        write_profile(build_timeline(RUN), tmp_path / "a")
    assert [file.name for file in write_profile(build_timeline(RUN), tmp_path / "b", png=False)] == [
        "timeline.html",
        "profile.json",
    ]
