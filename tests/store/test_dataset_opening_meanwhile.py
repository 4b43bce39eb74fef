"""A dataset that takes another's place while it is opened is the one that opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.errors import DatasetError
from streamtrain.store import dataset


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@pytest.mark.parametrize("function", ["_read_manifest", "file_damage", "read_checksums"])
def test_it_is_the_new_one(
    dataset_to_harm: Path, tmp_path: Path, function: str, damaged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = streamtrain.ingest({"x": np.arange(12)}, tmp_path / "other.zarr")
    if damaged:
        other.shard_path("x", 0).unlink()
    real, waiting = getattr(dataset, function), [dataset_to_harm]

    def swapping(*args: Any) -> Any:
        while waiting:
            path = waiting.pop()
            path.rename(tmp_path / "aside")
            other.path.rename(path)
        return real(*args)

    monkeypatch.setattr(dataset, function, swapping)
    if damaged:
        with pytest.raises(DatasetError, match=r"x/c/0: a stored file is missing"):
            streamtrain.open(dataset_to_harm)
    else:
        assert streamtrain.open(dataset_to_harm).id == other.id
    assert not waiting
