"""Files of tensors: the library reads what is written, whatever the dtype, and writing takes no memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import safetensors.torch
import torch

from streamtrain.errors import UsageError
from streamtrain.system.files import Files
from streamtrain.system.memory import MemoryMeter
from streamtrain.training.run.serialization import _NAMES, check_tensors, write_tensors


def write(path: Path, state: dict[str, torch.Tensor]) -> str:
    check_tensors(state)
    with Files().create(path) as out:
        return write_tensors(out, state)


def test_the_library_reads_every_dtype(tmp_path: Path) -> None:
    state = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in _NAMES}
    state |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "turned": torch.arange(6.0).reshape(2, 3).T}
    digest = write(tmp_path / "a", state)
    assert digest == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    read = safetensors.torch.load_file(tmp_path / "a")
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].to(torch.complex64), tensor.to(torch.complex64))


def test_tied_weights_are_written_once_for_each_name(tmp_path: Path) -> None:
    tied = torch.ones(3)
    write(tmp_path / "a", {"a": tied, "b": tied, "c": tied.conj()})
    assert all(torch.equal(tensor, tied) for tensor in safetensors.torch.load_file(tmp_path / "a").values())


@pytest.mark.parametrize("value", [3, {}, torch.ones(2).to_sparse()])
def test_what_no_file_holds_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="the model's state 'w' is"):
        check_tensors({"w": value})


def test_writing_takes_no_copy(tmp_path: Path) -> None:
    large = torch.ones(16_000_000)
    with MemoryMeter(interval_seconds=0.001) as meter:
        write(tmp_path / "a", {"large": large})
    assert meter.peak_bytes < 16_000_000
