"""Tables of three kinds that three columns tell apart, in any order and under any names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLUMNS = ("height", "width", "depth")
KINDS = ("ant", "bee", "cat")


def rows(n: int = 36, *, seed: int = 0, kinds: Sequence[str] = KINDS) -> tuple[dict[str, list[float]], list[str]]:
    """Values by column, and each row's kind: a kind is high in the column of its place, and low in the others."""
    rng = np.random.default_rng(seed)
    labels = [kinds[i % len(kinds)] for i in range(n)]
    x = np.eye(3)[[KINDS.index(label) for label in labels]] * 3 + rng.uniform(0.05, 0.4, (n, 3))
    return {name: x[:, place].round(4).tolist() for place, name in enumerate(COLUMNS)}, labels


def write(path: Path, columns: dict[str, list[float]], labels: Sequence[str], order: Sequence[str] = COLUMNS) -> Path:
    """Write a CSV file of these columns in this order, with the label behind them."""
    values = [[*(columns[name][i] for name in order), label] for i, label in enumerate(labels)]
    lines = [",".join([*order, "kind"]), *(",".join(map(str, row)) for row in values)]
    path.write_text("\n".join(lines) + "\n")
    return path
