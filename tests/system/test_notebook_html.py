"""HTML for notebooks: escaped, short, without a script or a color of its own for text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import streamtrain as st
from streamtrain.system.display.notebook_html import (
    clipped,
    clipped_left,
    html_bars,
    html_facts,
    html_table,
    html_title,
)

EVIL = '</table><script>alert("1")</script>\x1b[31m' + "&'\"<>" * 40


def test_everything_is_escaped_and_cut() -> None:
    rows = [[EVIL] * 8] * 1000
    pages = [html_table(rows), html_bars(dict.fromkeys([EVIL + str(i) for i in range(99)], 3) | {EVIL: 1})]
    for page in [*pages, html_facts([[EVIL, EVIL]]), html_title(EVIL)]:
        assert "<script" not in page
        assert "\x1b" not in page
        assert not re.search(r"(?<![-\w])color:", page), "colors are those around it"
    assert "… and 979 more" in pages[0]
    assert sum(map(len, pages)) < 60_000
    assert (clipped("ab", 2), clipped("abc", 2)) == ("ab", "a…")
    assert (clipped_left("abc", 2), clipped_left("abc", 0)) == ("…c", "…")


@pytest.mark.parametrize("name", ["d", "flights" * 20, "&<b>" * 20])
def test_a_dataset_is_a_line_and_a_page(name: str, tmp_path: Path) -> None:
    x = np.arange(60, dtype="float32").reshape(20, 3)
    dataset = st.ingest({"x": x, "y": ["<b>cat</b>", "dog"] * 10}, tmp_path / name, progress=False)
    assert len(repr(dataset)) <= 100
    assert repr(dataset).endswith("': 20 samples, x float32[3], y int64, classification)")
    page = dataset._repr_html_()
    assert "&lt;b&gt;cat" in page
    assert "<b>cat" not in page
    assert len(page) < 30_000
    with st.StreamLoader(dataset, batch_size=8, memory="16MB", seed=2**60) as loader:
        assert len(repr(loader)) <= 100
        assert "batch_size=8, memory='16MB'" in repr(loader)


def test_a_dataset_of_many_fields_and_columns_is_no_longer(tmp_path: Path) -> None:
    wide = {f"a_field_with_a_long_name_{i}": np.ones((4, 2, 2)) for i in range(30)}
    dataset = st.ingest({**wide, "y": np.arange(4.0) / 3}, tmp_path / "wide", progress=False)
    assert repr(dataset).endswith("': 4 samples, 31 fields, regression)")
    names = [f"{'&' * 60}{i}" for i in range(300)]
    (tmp_path / "t.csv").write_text(f"y,{','.join(names)}\n1{',2' * 300}\n")
    table = st.ingest(tmp_path / "t.csv", tmp_path / "t", label_column="y", progress=False)
    assert repr(table).endswith("t': 1 sample, 300 columns, classification)")
    assert all(len(repr(each)) <= 100 and len(each._repr_html_()) < 30_000 for each in (dataset, table))


def test_results_are_lines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)).astype("float32"), np.arange(200) % 3
    dataset = st.ingest({"x": x, "y": [EVIL[:30] + str(i) for i in y]}, tmp_path / "d", progress=False)
    trainer = st.Trainer("linear", device="cpu")
    history = trainer.fit(dataset, val=dataset, max_epochs=1, checkpoint=tmp_path / "run", progress=False)
    metrics, model = trainer.evaluate(dataset), st.load(tmp_path / "run", device="cpu")
    summary = model.predict(dataset, out=tmp_path / "p.npy")
    shown = [history[-1], metrics, summary, st.rows({"x": x}, like=dataset), st.plan(dataset), dataset.stats("x")]
    begins = ["EpochSummary(epoch 1, 1 step: loss ", "Metrics(loss ", "PredictionSummary(200 rows; "]
    begins += ["RawRows('array': 200 rows, x float32[3])", "Plan(1 batch of 256, ", "FieldStats(3 features: mean "]
    for each, begin in zip(shown, begins, strict=True):
        assert repr(each).startswith(begin)
        assert len(repr(each)) <= 100
        assert repr(each).isprintable()
    assert "200 samples" in repr(metrics)
    page = metrics._repr_html_()
    assert "balanced_accuracy" in page
    assert "support" in page
    assert "<script" not in page


def test_a_model_and_a_trainer_are_lines(tmp_path: Path) -> None:
    x = np.arange(60, dtype="float32").reshape(20, 3)
    dataset = st.ingest({"x": x, "y": ["cat", "dog"] * 10}, tmp_path / "d", progress=False)
    trainer = st.Trainer("mlp:8,4", task="classification", device="cpu")
    trainer.fit(dataset, max_epochs=1, checkpoint=tmp_path / "run", progress=False)
    model = st.load(tmp_path / "run", device="cpu")
    for each in (trainer, model):
        assert len(repr(each)) <= 100
        assert "\n" not in repr(each)
    assert "78 weights" in repr(trainer)
    assert "classification of 2 classes, epoch 1)" in repr(model)
    page = model._repr_html_()
    assert "2: cat, dog" in page
    assert page.count("Linear") == 3
    big = st.Trainer(type("A" * 200, (nn.Linear,), {})(3, 2), loss="cross_entropy", device="cpu")
    assert len(repr(big)) <= 100
