"""Every page with hostile names everywhere: all text, with charts and without, and the parts that it has."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import streamtrain as st
from streamtrain.comparison.report import comparison_page
from streamtrain.comparison.results import ComparedRun, Comparison, LearningCurvePoint
from streamtrain.comparison.surface import LossSurface, WeightPath
from streamtrain.diagnostics import charts, html
from streamtrain.diagnostics.profile_command import CommandRecord, HeldMemory, MemorySample
from streamtrain.diagnostics.profile_report import profile_page
from streamtrain.diagnostics.profile_timeline import build_timeline
from streamtrain.diagnostics.run_reader import read_run
from streamtrain.diagnostics.run_report import run_page
from streamtrain.system.events import EpochBegan, EpochEnded, LoaderOpened, RecordedEvent, ThreadSeconds
from streamtrain.training.metrics.results import Metrics

EVIL = '<script>alert("&$x$")<img src=x onerror=alert(1)>'
ALLOWED = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr", "td", "th", "div"}
ALLOWED |= {"figure", "pre", "svg", "defs", "g", "path", "use", "text", "clippath", "rect", "tspan"}
ALLOWED |= {"details", "summary"}


class Reader(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_run(folder: Path) -> str:
    """The report of a run whose model, rule, optimizer, options, columns, classes, folders and loaders are hostile."""
    rng = np.random.default_rng(0)
    with (folder / "d.csv").open("w", newline="") as file:
        rows = [[*rng.normal(size=2), [EVIL, "b"][i % 2]] for i in range(40)]
        csv.writer(file).writerows([[EVIL, "other", "label"], *rows])
    data = st.ingest(folder / "d.csv", folder / EVIL, label_column="label", progress=False)
    run = folder / f"run{EVIL}"
    run.mkdir()
    config = {"model": EVIL, "update": EVIL, "optimizer": {"name": EVIL, EVIL: EVIL}, EVIL: [EVIL]}
    (run / "config.json").write_text(json.dumps(config | {"dataset": str(data.path), "order": EVIL}))
    seconds = {"compute_seconds": 1.0, "transfer_seconds": 0.5, "wait_seconds": 0.25, "seconds": 1.75}
    line = {"kind": "epoch", "epoch": 1, "steps": 4, "samples": 80, "loss": 0.5, EVIL: 1.0, **seconds}
    (run / "metrics.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(line | {'steps': 8, 'loss': 0.25})}\n")
    memory = {"budget": 9, "projected": 8, "measured": 7, "process": 99, "terms": {EVIL: {EVIL: 8}}}
    (run / "memory.json").write_text(json.dumps(memory))
    return run_page(read_run(run))


def hostile_comparison(folder: Path) -> str:
    """A comparison whose rules, optimizers, description, score, weights and divergences are hostile."""
    metrics = Metrics(loss=0.5, scores={EVIL: 0.5}, n_samples=9)
    points = [
        LearningCurvePoint(epochs=i, n_steps=int(i), seconds=i, train=metrics, val=metrics, variance=i or None)
        for i in (0.0, 1.0, 2.0)
    ]
    runs = [
        ComparedRun(
            rule=rule, optimizer=EVIL, lr=0.1, points=tuple(points), memory={"process": 9}, diverged=EVIL, folder=folder
        )
        for rule in (EVIL, "batch")
    ]
    paths = [WeightPath(label=run.label, n_steps=(0, 1), places=((0.2, 0.2), (0.5, 0.5))) for run in runs]
    grid = np.array([0.0, 1.0])
    surface = LossSurface(
        labels=(EVIL, EVIL), shares=None, xs=grid, ys=grid, loss=np.array([[1, 2], [3, 4]]), paths=tuple(paths)
    )
    given = {"runs": tuple(runs), "target_loss": 0.4, "n_samples": 9, "n_weights": 2, "about": {EVIL: EVIL}}
    whole = comparison_page(Comparison(**given, surface=surface))
    assert EVIL in Reader(comparison_page(Comparison(**given, no_surface=EVIL))).text
    return whole


def hostile_profile(folder: Path) -> str:
    """A profile whose command, datasets and terms are hostile."""
    opened = LoaderOpened(
        loader=1, dataset=f"/{EVIL}", n_samples=9, batch_size=3, budget_bytes=64, terms={EVIL: 48}, held_bytes=5
    )
    ended = EpochEnded(loader=1, epoch=0, n_samples=9, seconds=4.0, wait_seconds=1.0, work=ThreadSeconds(disk=1.0))
    events = [(1.0, opened), (1.5, EpochBegan(loader=1, epoch=0)), (5.5, ended)]
    record = CommandRecord(
        command=("train", EVIL),
        exit_code=0,
        start=0.0,
        stop=9.0,
        samples=tuple(MemorySample(time=t, held={7: HeldMemory(anonymous=9, shared=0, file=1)}) for t in (0.0, 9.0)),
        events=tuple(RecordedEvent(time=time, pid=7, event=event) for time, event in events),
        group_peak_bytes=None,
        n_killed_for_memory=0,
    )
    return profile_page(build_timeline(record))


PAGES = {"run": (hostile_run, 14), "comparison": (hostile_comparison, 20), "profile": (hostile_profile, 6)}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("draws", [True, False], ids=["drawn", "tables"])
def test_a_name_is_text_wherever_it_stands(
    name: str, draws: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not draws:
        monkeypatch.setattr(charts.importlib.util, "find_spec", lambda _: None)
    make, least = PAGES[name]
    page = make(tmp_path)
    read = Reader(page)
    assert "<script" not in page
    assert "<img" not in page
    assert not read.open, "every tag is closed"
    assert read.tags <= ALLOWED, read.tags - ALLOWED
    assert not [each for each in read.attributes if each in {"src", "href"} or each.startswith("on")]
    assert read.text.count(EVIL) >= least
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert ("pip install streamtrain[plot] draws the charts." in page) != draws
    assert ("<svg" in page) == draws
    assert set(re.findall(r"https?://[^\"]*", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<table" in page


@pytest.mark.parametrize("make", [hostile_comparison, hostile_profile])
def test_a_page_is_the_same_each_time(make: Callable[[Path], str], tmp_path: Path) -> None:
    assert make(tmp_path) == make(tmp_path)


def test_what_is_not_escaped_stands_in_one_place() -> None:
    texts = [path.read_text() for path in (Path(html.__file__).parent / "templates").iterdir()]
    assert sum(text.count("|safe") for text in texts) == 1
    assert sum(text.count("autoescape") for text in texts) == 0
