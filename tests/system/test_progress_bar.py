"""Bars: where they are shown, in which kind, and what stays of them."""

from __future__ import annotations

import importlib.util
import io
import sys
import threading
from types import SimpleNamespace

import pytest

from streamtrain.system.display import progress_bar
from streamtrain.system.display.progress_bar import ByteProgress, ProgressBar, RunProgress, in_notebook, is_shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is the kernel of a notebook, as far as can be seen."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


def run(bar: RunProgress) -> None:
    with bar:
        for number in (1, 2):
            bar.begin_epoch(f"epoch {number}/3", total=30, done=0)
            bar.say("loss 0.5")
            bar.advance(10)
            bar.end_epoch("epoch  loss", f"    {number}   0.5", "loss 0.5")


def test_a_bar_is_shown_on_a_terminal_and_never_in_a_pipe_or_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr, shown in ((Terminal(), True), (io.StringIO(), False), (None, False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert is_shown(None) is shown
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    run(RunProgress(show=None, has_lines=True))
    assert sys.stderr.getvalue() == ""
    assert is_shown(True)


def test_a_terminal_has_one_bar_and_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    n_threads = threading.active_count()
    run(RunProgress(show=None, has_lines=True))
    assert threading.active_count() == n_threads
    text = stderr.getvalue()
    assert "epoch 2/3" in text
    assert "loss 0.5" in text
    stays = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    assert [line for line in stays if line] == ["epoch  loss", "    1   0.5", "    2   0.5"]
    assert text.endswith("\r"), "the bar itself goes"


def test_whoever_writes_lines_of_their_own_has_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with RunProgress(show=True, has_lines=False) as bar:
        bar.begin_epoch("epoch 1", total=10, done=0)
        bar.end_epoch("epoch  loss", "    1   0.5", "")
        with bar.aside():
            print("mine", file=sys.stderr)
    assert "    1   0.5" not in stderr.getvalue()
    assert "\rmine\n" in stderr.getvalue(), "the bar was out of the way"


def test_a_notebook_without_widgets_has_a_text_bar_that_stays(kernel: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_notebook()
    assert is_shown(None)
    run(RunProgress(show=None, has_lines=True))
    out, err = capsys.readouterr()
    assert err == "", "a notebook shows stderr as an error"
    assert "epoch  loss\n    1   0.5\n" in out
    assert out.rstrip("\n").rpartition("\r")[2].startswith("epoch 2/3: 100%"), "what was done is all there is to do"


def test_a_notebook_with_widgets_has_tqdm_s_bar_of_them(kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert progress_bar._bar_type() is ProgressBar
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ipywidgets" or found(name))
    monkeypatch.setattr(progress_bar, "_notebook_bar", lambda: dict)
    assert progress_bar._bar_type() is dict


def test_a_shell_of_ipython_without_a_kernel_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not in_notebook()


def test_bytes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with ByteProgress(100, show=True) as bar:
        bar.advance(100)
    assert "100%" in capsys.readouterr().err
