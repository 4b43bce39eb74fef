"""Worlds of what a training returned: its history drawn, as a table, and continued."""

from __future__ import annotations

import sys

import streamtrain as st
from tests.advice.training import fit
from tests.advice.world import World, changed_arguments, world


@world(
    "diagnostics/history_plot.py:plot: what fit returned, or trainer.history",
    "diagnostics/history_plot.py:plot: a name that ends in .{}",
)
def plots(w: World) -> None:
    trainer = fit(w.dataset())
    w.refused(st.plot, trainer)
    assert w.refused(st.plot, trainer.history, path="losses").endswith(".png, .svg, .pdf, .jpg")
    st.plot(trainer.history, path="losses.svg")


@world("training/records/history.py:History.to_frame: pip install pandas, or history.to_dict()")
def a_machine_without_pandas(w: World) -> None:
    history = fit(w.dataset()).history
    with w.monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pandas", None)
        w.refused(history.to_frame)
        assert history.to_dict()["epoch"] == [1]


@world("training/fitting.py:_reached: {}, or a new Trainer")
def totals_that_are_reached(w: World) -> None:
    data = w.dataset()
    trainer = fit(data)
    (change,) = changed_arguments(w.warned(fit, data, on=trainer))
    assert len(fit(data, on=trainer, **change).history) == 2
    assert len(fit(data).history) == 1
