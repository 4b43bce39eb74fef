"""Export of a run: one safetensors file of weights and normalization, which says what its numbers mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, Final

from streamtrain.errors import Argument, CheckpointError, Fix, UsageError
from streamtrain.loader.decode.image_dataset import decode_config
from streamtrain.models.factory import is_code
from streamtrain.store.schema.columns import schema_json
from streamtrain.store.writing.staging import check_in_no_dataset
from streamtrain.system.files import Files, is_folder, is_there, local_path
from streamtrain.system.refusals import translate_os_errors
from streamtrain.training.inference.saved_run import SavedRun, class_names, decode_of_run
from streamtrain.training.run.checkpoint import MODEL, NORMALIZE
from streamtrain.training.run.run_folder import read_config
from streamtrain.training.run.serialization import check_tensors, write_tensors

SUFFIX: Final = ".safetensors"
_ANOTHER: Final = Fix("another ", Argument("out"))
_SAVE: Final = "torch.save({model}.module.state_dict(), {out})"
_EXPORT: Final = "torch.export.export({model}, (x,)), where x is a batch of inputs"
_ONNX: Final = "torch.onnx.export({model}, (x,), {out}), where x is a batch of inputs, and onnxscript is installed"
_OTHER_FORMATS: Final = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl"), ("It is a pickle, whose reading runs code", _SAVE)),
    **dict.fromkeys((".ts", ".torchscript"), ("TorchScript is deprecated", _EXPORT)),
    ".pt2": ("Its format is tied to torch's version, and may hold pickles", _EXPORT),
    ".onnx": (None, _ONNX),
    **dict.fromkeys((".mlmodel", ".mlpackage", ".tflite"), ("Its tools make it from ONNX", _ONNX)),
}
"""Suffix -> why it is not written, and what writes it."""


def _decoded(config: Mapping[str, Any]) -> dict[str, object]:
    """Tell how images became pixels in the training, and how they do where the model is measured."""
    measured = decode_of_run(config)
    return {} if measured is None else {"decode": config["decode"], "decode_to_measure": decode_config(measured)}


def _code_of(run: str | Path) -> str | None:
    """Return the name of the code of a run's model; None for a model that is built in, and where nothing says."""
    try:
        name = str(read_config(local_path(run)).get("model", ""))
    except CheckpointError:
        return None
    return name if is_code(name) else None


def check_export(run: str | Path, out: str | Path, *, overwrite: bool) -> Path:
    """Refuse a file that is not exported to, with what works."""
    path = local_path(out)
    suffix = path.suffix.lower()
    if suffix in _OTHER_FORMATS:
        why, code = _OTHER_FORMATS[suffix]
        to = Path(out).with_suffix(".onnx") if code is _ONNX else out
        given = repr(str(run)) if (name := _code_of(run)) is None else f"{str(run)!r}, model={name!r}"
        fix = f"import streamtrain, torch; {code.format(model=f'streamtrain.load({given})', out=repr(str(to)))}"
        raise UsageError(f"export writes no {suffix} files", where=str(out), why=why, fix=fix)
    if suffix != SUFFIX:
        fix = Fix(Argument("out", f"{path.stem or 'model'}{SUFFIX}"))
        raise UsageError(f"out is {str(out)!r}, whose suffix names no kind of file", fix=fix)
    check_in_no_dataset(path.parent, "the exported file", _ANOTHER)
    with translate_os_errors("look at", path):
        if is_folder(path) or (is_there(path) and not overwrite):
            fix = _ANOTHER if is_folder(path) else Fix(Argument("overwrite", True), ", or ", _ANOTHER)
            raise UsageError("something exists there already", where=str(path), fix=fix)
        if not path.parent.is_dir():
            raise UsageError("there is no such folder", where=str(path.parent), fix=_ANOTHER)
    return path


def export(run: SavedRun, path: Path, *, files: Files | None = None) -> dict[str, object]:
    """Write weights and normalization, and in the header what they mean; return what the header says."""
    checkpoint = run.chosen.checkpoint
    tensors = {f"{of}.{name}": tensor for of in (MODEL, NORMALIZE) for name, tensor in checkpoint.tensors(of).items()}
    check_tensors(tensors)
    told: dict[str, object] = {
        "model": run.config["model"],
        "model_args": run.config.get("model_args", {}),
        "inputs": list(run.inputs),
        "task": run.task,
        "classes": class_names(run),
        "class_values": run.config.get("class_values"),
        "loss": run.config["loss"],
        "weights": {name: value for name, value in run.chosen.named().items() if name != "checkpoint"},
        # Outputs are (y - mean) / std of the targets, where that is told.
        "normalize_target": None if run.normalized_target is None else run.normalized_target.config(),
        "log_output": run.gives_logarithms,
        **_decoded(run.config),
        "version": version_of("streamtrain"),
    }
    # Names and texts alone: that is all that a safetensors header takes.
    metadata = {
        "format": "pt",
        "streamtrain": json.dumps(told),
        "schema": json.dumps(schema_json(run.schema)),
        "task": run.task or "",
    }
    with (files or Files()).create(path) as out:
        write_tensors(out, tensors, metadata)
    return told | {"tensors": len(tensors), "bytes": out.n_bytes}
