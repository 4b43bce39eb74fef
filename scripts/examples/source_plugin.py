#!/usr/bin/env python3
"""Read a format that streamtrain does not know: LIBSVM's, a line ``label index:value ...`` a sample.

Installed in a package whose entry points have ``svm = "source_plugin:probe"`` in the group ``streamtrain.sources``, it
makes ``streamtrain ingest data.svm dest`` work as well.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

import streamtrain as st
from streamtrain.ingestion.sources.base import Rows, Source, SourceOptions


class SvmFile(Source):
    """Samples of a file in order; how many there are, only its end tells."""

    n_samples, seekable = None, False

    def __init__(self, path: Path, n_features: int) -> None:
        x = st.Field(name="x", dtype=np.dtype("float32"), shape=(n_features,))
        self.path, self.fields = path, (x, st.Field(name="y", dtype=np.dtype("int64"), shape=()))
        seen = {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns}
        self.provenance = ({"format": "svm", "path": str(path), **seen},)

    def iter_blocks(self, max_bytes: int) -> Iterator[Rows]:
        row_bytes = sum(field.row_bytes for field in self.fields)
        with self.path.open() as lines:
            while samples := [line.split() for line in islice(lines, max(1, max_bytes // row_bytes))]:
                x = np.zeros((len(samples), *self.fields[0].shape), np.float32)
                for row, (_, *pairs) in zip(x, samples, strict=True):
                    for index, value in (pair.split(":") for pair in pairs):
                        row[int(index) - 1] = float(value)
                yield {"x": x, "y": np.array([int(label) for label, *_ in samples])}

    def where(self, row: int) -> str:
        return f"{self.path}:{row + 1}"


def probe(path: Path, options: SourceOptions) -> Source:
    """Open a file; a look through it tells its largest index."""
    with path.open() as lines:
        return SvmFile(path, max(int(pair.split(":")[0]) for line in lines for pair in line.split()[1:]))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "data.svm").write_text("0 1:0.5 3:2\n1 2:1\n0 1:-1\n")
        source = probe(Path(folder) / "data.svm", SourceOptions())
        print(*st.ingest(source, Path(folder) / "d.zarr", progress=False)[:].values(), sep="\n")
