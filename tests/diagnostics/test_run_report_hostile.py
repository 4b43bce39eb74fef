"""The report of a folder that somebody else wrote: whatever JSON can hold is refused in a line, or has a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamtrain.cli.main import main
from streamtrain.diagnostics import charts
from streamtrain.diagnostics.run.curves import _thinned
from streamtrain.diagnostics.run_reader import RunRecord, read_run
from streamtrain.diagnostics.run_report import run_page, write_report
from streamtrain.errors import CheckpointError

SECONDS = {"compute_seconds": 1.0, "transfer_seconds": 0.5, "wait_seconds": 0.25, "seconds": 1.75}
EPOCH = {"kind": "epoch", "epoch": 1, "steps": 4, "samples": 80, "loss": 0.5, "stall_fraction": 0.1, **SECONDS}
EPOCH |= {"samples_per_second": 45.0, "disk_thread_seconds": 0.5, "gather_thread_seconds": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": "linear", "update": "batch"}))
    (folder / "metrics.jsonl").write_text(f"{json.dumps(EPOCH)}\n")
    return folder


def refused(run: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert main(["report", str(run)]) == CheckpointError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "text",
    [
        '{"budget": {"a": 1}}',
        f'{{"budget": {10**400}}}',
        '{"terms": {"a": {"b": {"c": 1}}}}',
        '{"terms": {"a": 1}}',
        '{"terms": 1}',
        '{"measured": true}',
        '{"process": 1e999}',
    ],
)
def test_memory_that_is_no_bytes_by_name_is_refused(run: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "memory.json").write_text(text)
    refused(run, capsys, "memory.json: is damaged: no bytes by name")


def test_a_configuration_without_end_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for opening, closing in (('{"a":', "}"), ("[", "]")):
        (run / "config.json").write_text(f'{{"a": {opening * 500}1{closing * 500}}}')
        refused(run, capsys, "config.json: is damaged: it is nested more than 20 deep")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loss", "1" * 401),
        ("steps", "1" * 401),
        ("seconds", "1e999"),
        ("seconds", "null"),
        ("wait_seconds", "null"),
        ("disk_thread_seconds", "-1e999"),
        ("stall_fraction", "NaN"),
        ("epoch", "null"),
        ("samples", "1e308"),
        ("samples_per_second", "1e308"),
    ],
)
def test_a_number_that_means_nothing_is_left_out(run: Path, name: str, text: str) -> None:
    given = json.dumps(EPOCH | {name: "?"}).replace('"?"', text)
    (run / "metrics.jsonl").write_text(f"{json.dumps(EPOCH)}\n{given}\n")
    assert main(["report", str(run), "--json"]) == 0
    page = (run / "report.html").read_text()
    assert "Curves" in page
    assert text[:40] not in page or text == "null"


@pytest.mark.parametrize("losses", [(1e308, -1e308), (1e308, -1e308, 1e299, -1e299), (5e-324, 1e-320)])
def test_losses_at_the_ends_of_all_numbers_have_a_page(run: Path, losses: tuple[float, ...]) -> None:
    lines = [EPOCH | {"steps": i, "loss": loss} for i, loss in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    text = write_report(run)[0].read_text()
    assert "<h2>Epochs</h2>" in text
    assert "nothing to show" not in text


def test_names_that_meet_when_they_are_joined_have_a_page(run: Path) -> None:
    (run / "config.json").write_text(json.dumps({"a.b": 1, "a": {"b": "x"}, "model": "\ud800"}))
    text = write_report(run)[0].read_text(encoding="utf-8")
    assert text.count("<td>a.b</td>") == 2
    assert r"\ud800" in text


NUMBERS = st.none() | st.floats() | st.integers(-(10**400), 10**400)


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.dictionaries(st.sampled_from(list(EPOCH)[1:]), NUMBERS), min_size=1, max_size=4),
    # Drawing takes a hundred times longer than all else.
    draws=st.sampled_from([True, False, False, False, False, False]),
)
def test_any_numbers_have_a_page(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, Any]], draws: bool
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(EPOCH | line)}\n" for line in lines))
    told: RunRecord = read_run(folder)
    assert len(told.epochs) == len(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "can_draw", lambda: draws)
        assert run_page(told).endswith("</html>\n")


@pytest.mark.parametrize("n", [1, 999, 1000, 1001, 2000, 2001, 5432])
def test_a_curve_of_many_points_ends_where_it_ends(n: int) -> None:
    points = [(float(i), 0.0) for i in range(n)]
    thin = _thinned(points)
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert len(thin) <= 1001
    assert thin == sorted(set(thin))
