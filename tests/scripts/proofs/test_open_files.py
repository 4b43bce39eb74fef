"""Loaders, a training and checks of a dataset under a limit of open files."""

from __future__ import annotations

import os

import pytest
from run_script import results_of, run_script


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks its commands")
def test_many_shards_are_read_with_few_files() -> None:
    done = run_script("proofs/open_files.py", "--shards", "80", "--limits", "64", "16", timeout=110)
    enough, few = results_of(done)
    assert (enough["wrong"], few["wrong"]) == (0, 0), done.stderr
    assert set(enough["steps"].values()) == {0}
    assert enough["steps"].keys() >= {"loaders", "train", "resume", "evaluate", "verify a", "verify b"}
