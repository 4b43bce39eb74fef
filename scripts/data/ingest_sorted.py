#!/usr/bin/env python3
"""Ingest idx images and labels sorted by class, a tenth as validation data: the order that shuffles worst by chunks."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import streamtrain as st


def read_idx(path: Path) -> npt.NDArray[Any]:
    """Read an idx.gz file of bytes; its header has one big-endian length per axis."""
    content = gzip.decompress(path.read_bytes())
    n_axes = content[3]
    shape = np.frombuffer(content, ">i4", n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def main() -> None:
    """Sort in memory, which the demo's few megabytes allow, and ingest."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("images", "labels", "dest"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    labels = read_idx(args.labels)
    order = np.argsort(labels, kind="stable")
    st.ingest({"x": read_idx(args.images)[order], "y": labels[order]}, args.dest, split={"val": 0.1})
    print(f"{args.dest}: {len(order):,} samples, sorted by class")


if __name__ == "__main__":
    main()
