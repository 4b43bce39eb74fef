"""Commands started at once on the same names: one round of the proof."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from run_script import results_of, run_script

from scripts.runner import memory_folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its commands")
def test_each_does_its_work_or_is_refused() -> None:
    with TemporaryDirectory(dir=memory_folder()) as folder:
        done = run_script("proofs/side_by_side.py", "--rounds", "1", "--folder", folder, timeout=110)
        (result,) = results_of(done)
        assert not list(Path(folder).iterdir()), "nothing is left"
    assert (result["wrong"], result["mixed"]) == (0, 0), done.stderr
    assert result["done"] + result["locked"] + result["excused"] == 14
    assert result["done"] >= 5
