"""The error surface J around the paths of the weights, and these paths.

J(w) is the mean loss over the whole training data at the weights w; every value is a pass of its own over the stream.

A path is a bounded number of snapshots of the weights, evenly over the batches of a run: when there are too many, every
second one is dropped, and from then on every second place is kept.

The plane of the surface is that of principal component analysis, as in H. Li, Z. Xu, G. Taylor, C. Studer,
T. Goldstein, "Visualizing the loss landscape of neural nets" (NeurIPS 2018), section 7: through the mean of the
snapshots, along the two directions in which they spread the most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
"""All snapshots of a comparison together."""
_MOST_KEPT: Final = 200
_LEAST_KEPT: Final = 4
_COLUMNS: Final = 1 << 16


def n_snapshots(n_runs: int, weights_bytes: int) -> int:
    """Return how many snapshots each run of a comparison may keep; refuse weights too large for a path.

    >>> n_snapshots(6, 235_146 * 4), n_snapshots(6, 8)
    (45, 200)
    """
    n_fitting = PATH_BYTES // max(n_runs * weights_bytes, 1)
    if n_fitting < _LEAST_KEPT:
        needed = n_runs * weights_bytes * _LEAST_KEPT
        raise BudgetError(
            f"{_LEAST_KEPT} snapshots of {n_runs} runs take {format_bytes(needed)}; the path of the weights has "
            f"{format_bytes(PATH_BYTES)}",
            fix="fewer rules and optimizers, a smaller model, or no surface",
        )
    return min(n_fitting, _MOST_KEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The trained weights of a model after so many steps: one vector, on the CPU."""

    n_steps: int
    weights: Tensor


class Trajectory:
    """Snapshots of some parameters, at most an even number, evenly over the times they are offered.

    >>> weight = nn.Parameter(torch.zeros(1))
    >>> path = Trajectory([weight], most=4)
    >>> for step in range(100):
    ...     path.offer(step)
    >>> path.end(99)
    >>> [snapshot.n_steps for snapshot in path.kept]
    [0, 32, 64, 96, 99]
    """

    def __init__(self, parameters: Sequence[nn.Parameter], most: int) -> None:
        self._parameters = parameters
        self._most = most
        self._every = 1
        self._n_offered = 0
        # All the memory is written to now, so that none is missing later; the last row is for the end.
        self._rows = list(flatten_parameters(parameters).repeat(most + 1, 1))
        self.kept: list[Snapshot] = []

    def offer(self, n_steps: int) -> None:
        """Keep the weights after a number of steps, if it is their turn."""
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

    def _keep(self, n_steps: int) -> None:
        row = self._rows.pop()
        flatten_parameters(self._parameters, out=row)
        self.kept.append(Snapshot(n_steps=n_steps, weights=row))


def flatten_parameters(parameters: Sequence[nn.Parameter], out: Tensor | None = None) -> Tensor:
    """Copy some parameters into one vector on the CPU, a new one in the widest of their dtypes or a given one."""
    return torch.cat([as_real(parameter.detach()).reshape(-1).cpu() for parameter in parameters], out=out)


def set_parameters(parameters: Sequence[nn.Parameter], weights: Tensor) -> None:
    """Put a vector in place of some parameters' values."""
    values = [as_real(parameter.detach()) for parameter in parameters]
    for value, part in zip(values, torch.split(weights, [value.numel() for value in values]), strict=True):
        value.copy_(part.view_as(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlane:
    """A plane in the space of the weights, in float64.

    Parameters
    ----------
    origin, directions : torch.Tensor
        (n,) and (2, n), the directions of length 1 and at right angles.
    labels : tuple of two str
        What the directions are called.
    shares : tuple of two float, optional
        Of the snapshots' variance, what lies along each; None where the plane is all there is.
    """

    origin: Tensor
    directions: Tensor
    labels: tuple[str, str]
    shares: tuple[float, float] | None

    def at(self, a: float, b: float) -> Tensor:
        """Return the weights (n,) at a place of the plane."""
        return self.origin + a * self.directions[0] + b * self.directions[1]

    def place(self, weights: Tensor) -> tuple[float, float]:
        """Return the place of the plane that is nearest to some weights."""
        a, b = (self.directions @ (weights.double() - self.origin)).tolist()
        return a, b


def principal_plane(names: Sequence[str], snapshots: Sequence[Snapshot]) -> WeightPlane:
    """Find the plane of some snapshots: of two weights the weights' own, with their names, else the principal one.

    >>> line = [Snapshot(n_steps=t, weights=torch.tensor([0.0, 3.0 * t, 4.0 * t])) for t in range(3)]
    >>> found = principal_plane((), line)
    >>> [round(abs(value), 2) for value in found.directions[0].tolist()], found.shares
    ([0.0, 0.6, 0.8], (1.0, 0.0))
    """
    rows = [snapshot.weights for snapshot in snapshots]
    if len(rows[0]) == 2:
        axes = torch.eye(2, dtype=torch.float64)
        return WeightPlane(origin=torch.zeros(2).double(), directions=axes, labels=(names[0], names[1]), shares=None)
    # A single snapshot spreads in no direction, and its plane is any: one that is there twice has two.
    rows = rows if len(rows) > 1 else rows * 2
    origin = torch.zeros(len(rows[0]), dtype=torch.float64)
    for row in rows:
        origin += row / len(rows)
    # Squares of what is very large or small are not finite, or 0.
    size = max(float((row - origin).abs().max()) for row in rows) or 1.0
    values, vectors = torch.linalg.eigh(sum(part @ part.T for part in _parts(rows, origin, size)))
    leading = vectors.flip(1)[:, :2].T
    directions = torch.cat([leading @ part for part in _parts(rows, origin, size)], dim=1)
    # Along a direction without spread there is only rounding, which QR replaces by one at right angles.
    directions = torch.linalg.qr(directions.T).Q.T
    # Of a direction and its opposite the one that the paths go along, so that a drawing is always the same.
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
    """Yield the rows from the origin, in units of a size, some columns at a time: (n_rows, n_columns) in float64."""
    for start in range(0, len(origin), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        yield (torch.stack([row[columns].double() for row in rows]) - origin[columns]) / size


F64 = npt.NDArray[np.float64]

_MARGIN: Final = 0.18
"""How far beyond the paths the surface reaches, as a share of their extent."""
_LEAST_RATIO: Final = 0.2
"""The shorter side of the surface is at least this share of the longer one: a straight path has surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPath:
    """A run's path over the surface: the places of its weights, in order, and the updates made until each."""

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
    """Measure J of a model, by one pass at each of grid² places around some paths; its weights are put back.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> bowl = lambda: float(model.weight.detach().square().sum())
    >>> path = [Snapshot(n_steps=t, weights=torch.tensor([2.0 - t, 1.0])) for t in range(3)]
    >>> found = measure_surface(model, bowl, [("downhill", path)], grid=3)
    >>> found.labels, found.paths[0].places[0]
    (('weight[0,0]', 'weight[0,1]'), (2.0, 1.0))
    >>> bool(np.allclose(found.loss, found.xs[None] ** 2 + found.ys[:, None] ** 2))
    True
    """
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
    """Name the first trained weights of a model, one by one.

    >>> weight_names(nn.Linear(2, 1), 3)
    ['weight[0,0]', 'weight[0,1]', 'bias[0]']
    """
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    places = ((name, at) for name, parameter in trained for at in np.ndindex(tuple(parameter.shape)))
    return [f"{name}[{','.join(map(str, at))}]" if at else name for name, at in islice(places, most)]


def _grid(places: Sequence[tuple[float, float]], n: int) -> tuple[F64, F64]:
    """Return even places over the extent of the paths, and some way beyond."""
    low, extent = np.min(places, axis=0), np.ptp(places, axis=0)
    wide = np.maximum(extent, _LEAST_RATIO * extent.max() if extent.max() > 0 else 1.0)
    middle, half = low + extent / 2, wide * (0.5 + _MARGIN)
    xs, ys = np.linspace(middle - half, middle + half, n).T
    return xs, ys
