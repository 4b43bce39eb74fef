"""The notebook, run from top to bottom in a kernel: with widgets, without them, and interrupted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from run_script import SCRIPTS

NOTEBOOK = SCRIPTS / "examples" / "notebook.ipynb"
WITHOUT_WIDGETS = "import sys; sys.modules['ipywidgets'] = None"
INTERRUPTED = """
import os, signal
again = st.Trainer("mlp:16", normalize="auto", device="cpu")
how = {"batch_size": 128, "memory": "16MB", "checkpoint": path / "again", "progress": False}
again.fit(train, max_epochs=50, on_epoch=lambda epoch: os.kill(os.getpid(), signal.SIGINT), **how)
"""
RESUMED = """
other = st.Trainer("mlp:16", normalize="auto", device="cpu")
print(len(other.fit(train, max_epochs=3, resume="auto", **how)), len(again.history), len(other.history))
"""

Outputs = list[Any]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """A kernel, for all that is run: importing torch takes longer than the rest."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        patched.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patched.setenv("JUPYTER_PLATFORM_DIRS", "1")
        made = NotebookClient(
            nbformat.read(NOTEBOOK, as_version=4),
            timeout=120,
            resources={"metadata": {"path": str(tmp_path_factory.mktemp("cwd"))}},
        )
        with made.setup_kernel():
            yield made


def run(client: NotebookClient, code: str) -> Outputs:
    cell = nbformat.v4.new_code_cell(code)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    return list(cell.outputs)


def run_all(client: NotebookClient) -> list[Outputs]:
    """Run the notebook, and return the outputs of its code cells."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert len(cells) <= 10
    return [run(client, cell.source) for cell in cells if cell.cell_type == "code"]


def printed(outputs: Outputs) -> str:
    return "".join(each.text for each in outputs if each.output_type == "stream")


def kinds(outputs: Outputs) -> set[str]:
    return {kind for each in outputs if "data" in each for kind in each.data}


@pytest.mark.parametrize("has_widgets", [True, False], ids=["widgets", "no widgets"])
def test_bar_table_and_pictures_are_in_the_output_and_no_warning(client: NotebookClient, has_widgets: bool) -> None:
    if not has_widgets:
        run(client, WITHOUT_WIDGETS)
    _, stored, trained, plotted, model, predicted = outputs = run_all(client)
    assert not [each for part in outputs for each in part if each.get("name") == "stderr"], (
        "nothing looks like an error"
    )
    assert not re.search("warning|traceback", "".join(map(printed, outputs)), re.IGNORECASE)
    widget = "application/vnd.jupyter.widget-view+json"
    assert (widget in kinds(trained)) == has_widgets
    assert has_widgets or "epoch 3/3: 100%" in printed(trained)
    # A text bar is redrawn in its line; what is seen of the line follows its last return.
    seen = "\n".join(line.rpartition("\r")[2] for line in printed(trained).split("\n"))
    lines = re.findall(r"^ +(\d) +[\d,]+ +\d\.\d{4}", seen, re.MULTILINE)
    assert lines == ["1", "2", "3"], "a line an epoch"
    assert all("text/html" in kinds(part) for part in (stored, trained, model))
    assert "image/png" in kinds(plotted)
    for part in (stored, model):
        text = part[-1].data["text/plain"]
        assert len(text) <= 100
        assert "\n" not in text
    assert "array(" in predicted[-1].data["text/plain"]


def test_an_interrupted_kernel_has_saved_the_run_and_gives_the_prompt_back(client: NotebookClient) -> None:
    if len(client.nb.cells) < 12:
        run_all(client)
    with pytest.raises(CellExecutionError, match=r"interrupted by SIGINT; saved .*again"):
        run(client, INTERRUPTED)
    assert printed(run(client, RESUMED)) == "2 1 3\n"


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert Path(NOTEBOOK).stat().st_size < 10_000
