"""A safetensors file written as it lies in memory: no copy of a tensor is made, so saving a model takes no room.

The format is a length of eight bytes, a header in JSON, and the tensors end to end (the specification is in the README
of huggingface/safetensors). The library reads it; its own writer holds a file's content several times over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from streamtrain.errors import UsageError
from streamtrain.system.files import FileWriter

_ALIGNMENT: Final = 8
_NAMES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def check_tensors(state: Mapping[str, Any]) -> None:
    """Refuse what no such file can hold.

    Raises
    ------
    UsageError
        Something is no tensor, or is one of a kind that the format does not know.

    Examples
    --------
    >>> check_tensors({"weight": 3})
    Traceback (most recent call last):
    ...
    streamtrain.errors.UsageError: the model's state 'weight' is int, not a tensor. Fix: a buffer of it.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the model's state {name!r} is {type(value).__name__}, not a tensor", fix="a buffer of it"
            )
        if value.dtype not in _NAMES or value.layout != torch.strided:
            raise UsageError(
                f"the model's state {name!r} is a tensor of {value.dtype}, {value.layout}, which no checkpoint holds",
                fix="a dense tensor of floats, integers or booleans",
            )


def write_tensors(out: FileWriter, state: Mapping[str, Tensor]) -> str:
    """Write tensors that `check_tensors` has let pass, and return the SHA-256 of the file as hexadecimal digits.

    Tensors that share memory are written once for each name.

    Raises
    ------
    ResourceError
        The disk or the quota is full.

    Examples
    --------
    >>> import tempfile, pathlib, safetensors.torch
    >>> from streamtrain.system.files import Files
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> with Files().create(path) as out:
    ...     digest = write_tensors(out, {"w": torch.ones(2)})
    >>> safetensors.torch.load_file(path)
    {'w': tensor([1., 1.])}
    """
    digest = hashlib.sha256()
    for piece in _pieces(state):
        digest.update(piece)
        out.write(piece)
    return digest.hexdigest()


def _pieces(state: Mapping[str, Tensor]) -> Iterator[memoryview]:
    # Those of wide elements first, so that each begins at a multiple of its elements' size.
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, dict[str, object]] = {}
    at = 0
    for name, tensor in ordered:
        stop = at + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for _, tensor in ordered:
        if tensor.numel():
            # One at a time: of a device's tensors only one is on the host.
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
