"""The error surface J around the paths of the weights, and these paths.

J(w) is the mean loss over the whole training data at the weights w; every value takes a pass over the stream.

A path is a bounded number of snapshots of the weights, spread evenly over the batches of a run: when the bound is
reached, every second snapshot is dropped, and from then on every second one is taken.

The plane of the surface is that of principal component analysis, as in H. Li, Z. Xu, G. Taylor, C. Studer,
T. Goldstein, "Visualizing the loss landscape of neural nets" (NeurIPS 2018), section 7: through the mean of the
snapshots, along the two directions in which they spread the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamtrain.errors import BudgetError
from streamtrain.models.real_view import as_real
from streamtrain.optim.gradients import weights_kept
from streamtrain.system.units import format_bytes

PATH_BYTES: Final = 256_000_000
"""Of all snapshots of a comparison together."""
SURFACE_BYTES_PER_WEIGHT: Final = 80
"""The most that a plane through the snapshots, and the model moved over it, hold for each weight."""
_MOST_KEPT: Final = 200
_LEAST_KEPT: Final = 4
_COLUMNS: Final = 1 << 16


def n_snapshots(n_runs: int, weights_bytes: int) -> int:
    """Return how many snapshots each run of a comparison may keep; refuse weights too large for a path."""
    n_fitting = PATH_BYTES // max(n_runs * weights_bytes, 1)
    if n_fitting < _LEAST_KEPT:
        needed = n_runs * weights_bytes * _LEAST_KEPT
        raise BudgetError(
            f"{_LEAST_KEPT} snapshots of {n_runs} runs take {format_bytes(needed)}; the path of the weights has "
            f"{format_bytes(PATH_BYTES)}",
            fix="fewer rules or optimizers, a smaller model, or no surface",
        )
    return min(n_fitting, _MOST_KEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The trained weights of a model after ``n_steps`` steps: one vector, on the CPU."""

    n_steps: int
    weights: Tensor


class Trajectory:
    """Snapshots of parameters, at most an even number, spread evenly over the times they are offered."""

    def __init__(self, parameters: Sequence[nn.Parameter], most: int) -> None:
        self._parameters = parameters
        self._most = most
        self._every = 1
        self._n_offered = 0
        # All the memory is written to now, so that it cannot run out later; the last row is for the end.
        self._rows = list(flatten_parameters(parameters).repeat(most + 1, 1))
        self.kept: list[Snapshot] = []

    def offer(self, n_steps: int) -> None:
        """Keep the weights after ``n_steps`` steps, if it is their turn."""
        if self._n_offered % self._every == 0:
            if len(self.kept) == self._most:
                self._rows += [snapshot.weights for snapshot in self.kept[1::2]]
                self.kept = self.kept[::2]
                self._every *= 2
            if self._n_offered % self._every == 0:
                self._keep(n_steps)
        self._n_offered += 1

    def end(self, n_steps: int) -> None:
        """Keep the last weights in any case."""
        if not self.kept or self.kept[-1].n_steps != n_steps:
            self._keep(n_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the path so far; its tensors are not copied."""
        return {
            "every": self._every,
            "n_offered": self._n_offered,
            "n_steps": [snapshot.n_steps for snapshot in self.kept],
            "weights": [snapshot.weights for snapshot in self.kept],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a path of the same parameters."""
        self._rows += [snapshot.weights for snapshot in self.kept]
        self.kept = []
        for n_steps, weights in zip(state["n_steps"], state["weights"], strict=True):
            row = self._rows.pop()
            row.copy_(weights)
            self.kept.append(Snapshot(n_steps=n_steps, weights=row))
        self._every, self._n_offered = int(state["every"]), int(state["n_offered"])

    def _keep(self, n_steps: int) -> None:
        row = self._rows.pop()
        flatten_parameters(self._parameters, out=row)
        self.kept.append(Snapshot(n_steps=n_steps, weights=row))


def flatten_parameters(parameters: Sequence[nn.Parameter], out: Tensor | None = None) -> Tensor:
    """Copy parameters into one vector on the CPU: ``out``, or a new one in the widest of their dtypes."""
    return torch.cat([as_real(parameter.detach()).reshape(-1).cpu() for parameter in parameters], out=out)


def set_parameters(parameters: Sequence[nn.Parameter], weights: Tensor) -> None:
    """Set the values of parameters from one vector."""
    values = [as_real(parameter.detach()) for parameter in parameters]
    for value, part in zip(values, torch.split(weights, [value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlane:
    """A plane in the space of the weights, in float64."""

    # (n,) and (2, n); the directions have length 1 and are at right angles.
    origin: Tensor
    directions: Tensor
    labels: tuple[str, str]
    # Of the snapshots' variance, along each direction; None where the plane is the whole space.
    shares: tuple[float, float] | None

    def at(self, a: float, b: float) -> Tensor:
        """Return the weights (n,) at a point of the plane."""
        return self.origin + a * self.directions[0] + b * self.directions[1]

    def place(self, weights: Tensor) -> tuple[float, float]:
        """Return the point of the plane nearest to some weights."""
        a, b = (self.directions @ (weights.double() - self.origin)).tolist()
        return a, b


def principal_plane(names: Sequence[str], snapshots: Sequence[Snapshot]) -> WeightPlane:
    """Find the principal plane of snapshots; two weights span their own plane, labelled with their names."""
    rows = [snapshot.weights for snapshot in snapshots]
    if len(rows[0]) == 2:
        axes = torch.eye(2, dtype=torch.float64)
        return WeightPlane(origin=torch.zeros(2).double(), directions=axes, labels=(names[0], names[1]), shares=None)
    # A single snapshot has no spread, so any plane will do: twice the same row gives two directions.
    rows = rows if len(rows) > 1 else rows * 2
    origin = torch.zeros(len(rows[0]), dtype=torch.float64)
    for row in rows:
        origin += row / len(rows)
    # In units of the largest difference: squares of very large or small numbers overflow, or are 0.
    size = max(float((row - origin).abs().max()) for row in rows) or 1.0
    values, vectors = torch.linalg.eigh(sum(part @ part.T for part in _parts(rows, origin, size)))
    leading = vectors.flip(1)[:, :2].T
    directions = torch.cat([leading @ part for part in _parts(rows, origin, size)], dim=1)
    # A direction without spread is only rounding; QR replaces it by one at right angles.
    directions = torch.linalg.qr(directions.T).Q.T
    # The sign that the paths follow, so that a drawing is always the same.
    directions[directions @ (rows[-1].double() - rows[0].double()) < 0] *= -1
    spread = values.clamp_min(0).flip(0)
    first, second = (spread[:2] / (float(spread.sum()) or 1.0)).tolist()
    return WeightPlane(
        origin=origin,
        directions=directions,
        labels=(_label(1, first), _label(2, second)),
        shares=(round(first, 6), round(second, 6)),
    )


def _label(number: int, share: float) -> str:
    return f"direction {number} of the paths ({share:.0%} of their spread)"


def _parts(rows: Sequence[Tensor], origin: Tensor, size: float) -> Iterator[Tensor]:
    """Yield the rows relative to the origin in units of ``size``, a block of columns (n_rows, n_columns) at a time."""
    for start in range(0, len(origin), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        yield (torch.stack([row[columns].double() for row in rows]) - origin[columns]) / size


F64 = npt.NDArray[np.float64]

_MARGIN: Final = 0.18
"""Margin of the surface around the paths, as a share of their extent."""
_LEAST_RATIO: Final = 0.2
"""The shorter side of the surface, at least, as a share of the longer one: a straight path has surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPath:
    """A run's path over the surface: the points of its weights, in order, and the updates before each."""

    label: str
    n_steps: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSurface:
    """J on a grid of a `WeightPlane`, and the paths of the runs; ``loss[j, i]`` is J at ``xs[i], ys[j]``, or NaN."""

    labels: tuple[str, str]
    shares: tuple[float, float] | None
    xs: F64
    ys: F64
    loss: F64
    paths: tuple[WeightPath, ...]

    def named(self) -> dict[str, Any]:
        """Return everything by name."""
        return {
            "axes": list(self.labels),
            "variance_shares": list(self.shares) if self.shares else None,
            "x": self.xs.tolist(),
            "y": self.ys.tolist(),
            "loss": self.loss.tolist(),
            "paths": [
                {"label": path.label, "steps": list(path.n_steps), "places": [list(place) for place in path.places]}
                for path in self.paths
            ],
        }


def measure_surface(
    model: nn.Module,
    loss_at: Callable[[], float],
    paths: Sequence[tuple[str, Sequence[Snapshot]]],
    *,
    grid: int,
    done: Callable[[], object] = lambda: None,
) -> LossSurface:
    """Measure J of a model, by one pass at each of grid² points around the paths; its weights are restored."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plane = principal_plane(weight_names(model, 2), [snapshot for _, kept in paths for snapshot in kept])
    drawn = tuple(
        WeightPath(
            label=label,
            n_steps=tuple(snapshot.n_steps for snapshot in kept),
            places=tuple(plane.place(snapshot.weights) for snapshot in kept),
        )
        for label, kept in paths
    )
    xs, ys = _grid([place for path in drawn for place in path.places], grid)
    loss = np.empty((grid, grid))
    with weights_kept(parameters):
        for j, y in enumerate(ys):
            for i, x in enumerate(xs):
                set_parameters(parameters, plane.at(float(x), float(y)))
                loss[j, i] = loss_at()
                done()
    loss[~np.isfinite(loss)] = np.nan
    return LossSurface(labels=plane.labels, shares=plane.shares, xs=xs, ys=ys, loss=loss, paths=drawn)


def weight_names(model: nn.Module, most: int) -> list[str]:
    """Name the first trained weights of a model, one by one."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    places = ((name, at) for name, parameter in trained for at in np.ndindex(tuple(parameter.shape)))
    return [f"{name}[{','.join(map(str, at))}]" if at else name for name, at in islice(places, most)]


def _grid(places: Sequence[tuple[float, float]], n: int) -> tuple[F64, F64]:
    """Return evenly spaced points over the extent of the paths and a margin."""
    low, extent = np.min(places, axis=0), np.ptp(places, axis=0)
    wide = np.maximum(extent, _LEAST_RATIO * extent.max() if extent.max() > 0 else 1.0)
    middle, half = low + extent / 2, wide * (0.5 + _MARGIN)
    xs, ys = np.linspace(middle - half, middle + half, n).T
    return xs, ys
