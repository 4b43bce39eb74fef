"""Progress bars without a monitor thread: on stderr where that is a terminal, in a notebook below its cell."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any, Final, Self, TextIO

from tqdm import tqdm

from streamtrain.system.arguments import check_flags

_REFRESH_SECONDS: Final = 0.2


def parse_progress(show: bool | None) -> bool | None:
    """Refuse a choice of a bar that is none."""
    if show is not None:
        check_flags(progress=show)
    return show


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    # Whoever runs in a kernel has IPython loaded; a shell of IPython in a terminal has no kernel.
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


def is_shown(show: bool | None) -> bool:
    """Say whether a bar is shown: by default in a notebook and on a terminal, and never where stderr is closed."""
    # A process begun with a closed stderr has None there.
    return sys.stderr is not None and (in_notebook() or sys.stderr.isatty() if show is None else show)


class ProgressBar(tqdm):  # type: ignore[type-arg]  # generic in its stub only
    """A tqdm bar that starts no thread."""

    # tqdm would start a thread that outlives the bar, to redraw one that has stalled.
    monitor_interval = 0


@cache
def _notebook_bar() -> type[Any]:
    from tqdm.notebook import tqdm_notebook

    class NotebookBar(tqdm_notebook):  # type: ignore[type-arg]
        monitor_interval = 0

    return NotebookBar


def _bar_type() -> type[Any]:
    """Choose tqdm's bar of widgets in a notebook that can have it; asked without them, tqdm warns or fails."""
    return _notebook_bar() if in_notebook() and importlib.util.find_spec("ipywidgets") else ProgressBar


def _place() -> TextIO:
    """Return the stream of bars: a notebook shows stderr as if it were an error."""
    return sys.stdout if in_notebook() else sys.stderr


class ByteProgress:
    """A bar of the bytes that are done, shown by default in a notebook and on a terminal."""

    def __init__(self, total_bytes: int | None, *, show: bool | None) -> None:
        self._advancing = threading.Lock()
        how: dict[str, Any] = {"desc": "ingest", "unit": "B", "unit_scale": True, "disable": not is_shown(show)}
        self._bar = _bar_type()(total=total_bytes, file=_place(), **how)

    def advance(self, n_bytes: int) -> None:
        """Count bytes that are done."""
        with self._advancing:
            self._bar.update(n_bytes)

    def __enter__(self) -> ByteProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class RunProgress:
    """The bar of a run, from its first epoch on, and a line an epoch that stays.

    ``has_lines`` says whether they are written; whoever prints lines of its own wraps them in ``aside``.
    """

    def __init__(self, *, show: bool | None, has_lines: bool) -> None:
        self._is_shown = is_shown(show)
        self._has_lines = has_lines
        self._has_head = False
        self._bar: Any = None

    def begin_epoch(self, label: str, *, total: int, done: int) -> None:
        """Label the bar with an epoch; the first makes it, of ``total`` samples, ``done`` of which were before."""
        if self._bar is None:
            leaves = in_notebook() and self._has_lines
            how = {"desc": label, "unit": " samples", "unit_scale": True, "mininterval": _REFRESH_SECONDS}
            shown = {"file": _place(), "disable": not self._is_shown, "leave": leaves}
            self._bar = _bar_type()(total=total, initial=done, **how, **shown)
        self._bar.set_description(label, refresh=False)

    def advance(self, n: int) -> bool:
        """Count samples; whether the bar was drawn just now, so that what it says is made no oftener than seen."""
        return bool(self._bar.update(n))

    def say(self, text: str) -> None:
        """Put metrics behind the bar, to be seen when it is drawn next."""
        self._bar.set_postfix_str(text, refresh=False)

    def end_epoch(self, head: str, line: str, figures: str) -> None:
        """Write the line of an epoch where it stays, the first one below a head, and its figures behind the bar."""
        self._bar.set_postfix_str(figures, refresh=False)
        if self._is_shown and self._has_lines:
            text = line if self._has_head else f"{head}\n{line}"
            self._has_head = True
            self._bar.write(text, file=_place())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while the block prints lines of its own."""
        if self._is_shown and self._bar is not None:
            with self._bar.external_write_mode(file=_place()):
                yield
        else:
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                # A run that ends before its total is done as well; a notebook would show it as failed.
                self._bar.total = self._bar.n
            self._bar.close()
