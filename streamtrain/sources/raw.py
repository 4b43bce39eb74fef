"""Raw binary: elements one after another with no header, so the caller says what they are."""

from __future__ import annotations

import math
from pathlib import Path

from streamtrain.errors import InputError, UsageError
from streamtrain.sources.inputs import provenance_of, refuse_options
from streamtrain.sources.packed import PackedSource, packing_of
from streamtrain.sources.protocol import SourceOptions


def probe(path: Path, options: SourceOptions) -> PackedSource:
    """Open a raw binary file as field ``x`` of the dtype and sample shape in the options.

    Raises
    ------
    UsageError
        The options lack the dtype or the shape, or the shape is not one.
    InputError
        The file's size is not a whole number of samples.
    """
    refuse_options(path, "raw binary", options, "label_column", "columns")
    provenance = provenance_of(path, "raw")
    if options.dtype is None or options.shape is None:
        missing = " and ".join(name for name in ("dtype", "shape") if getattr(options, name) is None)
        raise UsageError(
            f"raw binary needs the {missing} of one sample",
            where=str(path),
            why="The file itself does not say what it holds",
            fix="dtype=float32 and shape=(3, 32, 32), say; shape=() is one number per sample",
        )
    if any(length < 1 for length in options.shape):
        raise UsageError(
            f"shape {options.shape} has an axis below 1", where=str(path), fix="give the shape of one sample"
        )
    n_bytes = provenance[0]["bytes"]
    row_bytes = options.dtype.itemsize * math.prod(options.shape)
    if n_bytes % max(1, row_bytes):
        raise InputError(
            f"{n_bytes:,} bytes are not a whole number of samples: {n_bytes % row_bytes:,} are left over",
            where=str(path),
            why=f"A sample of shape {options.shape} and dtype {options.dtype} has {row_bytes:,} bytes",
            fix="correct the dtype or the shape, or write the file again",
        )
    shape = (n_bytes // max(1, row_bytes), *options.shape)
    packing = packing_of("x", options.dtype, shape, 0, where=str(path))
    return PackedSource(path=path, packing=packing, provenance=provenance)
