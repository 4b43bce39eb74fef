"""A history drawn by matplotlib: a chart a metric, training and validation, the best epoch marked."""

from __future__ import annotations

import math
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streamtrain.diagnostics.charts import COLOURS, QUIET, can_draw, format_tick, house_style, is_wide, printable
from streamtrain.errors import Fix, UsageError
from streamtrain.system.calls.public import public
from streamtrain.system.files import Files, local_path
from streamtrain.training.records.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES: Final = (4.6, 3.0)
_DPI: Final = 110
_VAL: Final = "val_"
_FORMATS: Final = ("png", "svg", "pdf", "jpg")


@public
def plot(history: History, *, path: str | Path | None = None) -> Figure:
    """Draw a history: one chart per metric, with training and validation data and the best epoch marked.

    Parameters
    ----------
    history : History
        What `Trainer.fit` returned, or a trainer's ``history``.
    path : path, optional
        Where to save it as well: a ``.png``, ``.svg``, ``.pdf`` or ``.jpg``.

    Returns
    -------
    matplotlib.figure.Figure
        A notebook shows it.

    Raises
    ------
    UsageError
        matplotlib is not installed, this is not a `History`, or the file's suffix is not one of these.

    Examples
    --------
    >>> import tempfile, numpy as np, torch, streamtrain as st
    >>> data = st.ingest({"x": np.eye(4, dtype="float32"), "y": np.arange(4)}, tempfile.mkdtemp() + "/d.zarr")
    >>> trainer = st.Trainer(torch.nn.Linear(4, 4), loss="cross_entropy", device="cpu")
    >>> figure = st.plot(trainer.fit(data, max_epochs=3, val=data, progress=False))
    >>> [(axes.get_title(), len(axes.lines[0].get_xdata())) for axes in figure.axes]
    [('loss', 3), ('accuracy', 3)]
    """
    if not isinstance(history, History):
        raise UsageError(
            f"plot takes a History, not {type(history).__name__}", fix="what fit returned, or trainer.history"
        )
    if not can_draw():
        raise UsageError(
            "matplotlib is not installed, and plots are drawn with it", fix=Fix("pip install 'streamtrain[plot]'")
        )
    place = None if path is None else local_path(path)
    if place is not None and place.suffix.lower().lstrip(".") not in _FORMATS:
        raise UsageError(f"a plot cannot be saved as {str(path)!r}", fix=f"a name that ends in .{', .'.join(_FORMATS)}")
    figure = _draw(history)
    if place is not None:
        Files().write_bytes(place, _saved(figure, place.suffix.lower().lstrip(".")))
    return figure


@house_style()
def _saved(figure: Figure, form: str) -> bytes:
    data = BytesIO()
    figure.savefig(data, format=form, dpi=2 * _DPI)
    return data.getvalue()


@cache
def _notebook_figure() -> type[Figure]:
    from matplotlib.figure import Figure

    class NotebookFigure(Figure):
        """A figure that a notebook shows without pyplot."""

        def _repr_png_(self) -> bytes:
            return _saved(self, "png")

    return NotebookFigure


@house_style()
def _draw(history: History) -> Figure:
    columns = history.to_dict()
    first = history.epochs[0].train.named() if history.epochs else {"loss": math.nan}
    names = [name for name in first if name in columns] or ["loss"]
    n_wide = min(len(names), 2)
    n_high = -(-len(names) // n_wide)
    size = (_INCHES[0] * n_wide, _INCHES[1] * n_high)
    figure = _notebook_figure()(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(n_high, n_wide, place + 1)
        _draw_metric(axes, name, columns, history)
    return figure


def _draw_metric(axes: Axes, name: str, columns: dict[str, list[float]], history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [epoch.number for epoch in history]
    shown: list[float] = []
    for label, column, colour, marker in (
        ("training", name, COLOURS[0], "o"),
        ("validation", f"{_VAL}{name}", COLOURS[1], "s"),
    ):
        values: list[Any] = [value if abs(value) < 1e150 else math.nan for value in columns.get(column, ())]
        if values:
            axes.plot(numbers, values, color=colour, marker=marker, markersize=4, label=label)
            shown += [value for value in values if not math.isnan(value)]
    if history.best is not None and history.epochs:
        axes.axvline(history.best.epoch, color=QUIET, linestyle=":", label=f"best by {printable(history.best.monitor)}")
    if not shown:
        axes.text(0.5, 0.5, "nothing to show", ha="center", transform=axes.transAxes)
    elif is_wide(shown) and min(shown) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: format_tick(value))
    axes.set_title(printable(name), loc="center")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    if axes.lines:
        axes.legend(fontsize=8)
