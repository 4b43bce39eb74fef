"""Refusals of the system: what ran out, its figure, and the remedy."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from streamtrain.errors import ResourceError
from streamtrain.system.files import Files
from streamtrain.system.units import format_bytes


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ResourceError) as caught:
            Files().write_bytes(tmp_path / "a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.what == "cannot write: File too large"
    assert caught.value.why == f"This process may write files of {format_bytes(4096)} (RLIMIT_FSIZE)"
    assert (caught.value.fix or "").startswith("raise the limit: ulimit -f ")
    assert not list(tmp_path.iterdir())
