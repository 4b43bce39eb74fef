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
    """How many snapshots each run of a comparison may keep.

    Raises
    ------
    BudgetError
        The weights are too large to keep a path of them.

    Examples
    --------
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
    """Snapshots of some parameters, at most so many, evenly over the times they are offered.

    The memory for all of them is taken at the beginning.

    Parameters
    ----------
    parameters : sequence of torch.nn.Parameter
        What is kept, as one vector.
    most : int
        Snapshots to keep at the most, an even number.

    Examples
    --------
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
        # Written to, and so held from now on; the last row is for the end.
        self._rows = list(flatten_parameters(parameters).repeat(most + 1, 1))
        self.kept: list[Snapshot] = []

    def offer(self, n_steps: int) -> None:
        """Keep the weights as they are, after so many steps, if it is their turn."""
        if self._n_offered % self._every == 0:
            if len(self.kept) == self._most:
                self._rows += [snapshot.weights for snapshot in self.kept[1::2]]
                self.kept = self.kept[::2]
                self._every *= 2
            if self._n_offered % self._every == 0:
                self._keep(n_steps)
        self._n_offered += 1

    def end(self, n_steps: int) -> None:
        """Keep the last weights, whosever turn it is."""
        if not self.kept or self.kept[-1].n_steps != n_steps:
            self._keep(n_steps)

    def _keep(self, n_steps: int) -> None:
        row = self._rows.pop()
        torch.cat([as_real(parameter.detach()).reshape(-1).cpu() for parameter in self._parameters], out=row)
        self.kept.append(Snapshot(n_steps=n_steps, weights=row))


def flatten_parameters(parameters: Sequence[nn.Parameter]) -> Tensor:
    """A copy of some parameters as one vector on the CPU, in the widest of their dtypes."""
    return torch.cat([as_real(parameter.detach()).reshape(-1).cpu() for parameter in parameters])


def set_parameters(parameters: Sequence[nn.Parameter], weights: Tensor) -> None:
    """Put a vector in place of some parameters' values."""
    at = 0
    with torch.no_grad():
        for parameter in parameters:
            values = as_real(parameter)
            values.copy_(weights[at : at + values.numel()].view_as(values))
            at += values.numel()


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlane:
    """A plane in the space of the weights.

    Parameters
    ----------
    origin : torch.Tensor
        float64, (n,).
    directions : tuple of two torch.Tensor
        float64, (n,) each: of length 1, and at right angles.
    labels : tuple of two str
        What they are called.
    shares : tuple of two float, optional
        Of the snapshots' variance, what lies along each; None where the plane is all there is.
    """

    origin: Tensor
    directions: tuple[Tensor, Tensor]
    labels: tuple[str, str]
    shares: tuple[float, float] | None

    def at(self, a: float, b: float) -> Tensor:
        """The weights at a place of the plane, float64, (n,)."""
        return self.origin + a * self.directions[0] + b * self.directions[1]

    def place(self, weights: Tensor) -> tuple[float, float]:
        """The place of the plane that is nearest to some weights."""
        away = weights.double() - self.origin
        return float(away @ self.directions[0]), float(away @ self.directions[1])


def principal_plane(names: Sequence[str], snapshots: Sequence[Snapshot]) -> WeightPlane:
    """The plane of some snapshots: for two weights that of the weights themselves, else their principal one.

    Parameters
    ----------
    names : sequence of str
        Of two weights, or any others, which are not used.
    snapshots : sequence of Snapshot
        At least one, of two weights or more.

    Examples
    --------
    >>> line = [Snapshot(n_steps=t, weights=torch.tensor([0.0, 3.0 * t, 4.0 * t])) for t in range(3)]
    >>> found = principal_plane((), line)
    >>> [round(abs(value), 2) for value in found.directions[0].tolist()], found.shares
    ([0.0, 0.6, 0.8], (1.0, 0.0))
    """
    n_weights = len(snapshots[0].weights)
    if n_weights == 2:
        axes = torch.eye(2, dtype=torch.float64)
        return WeightPlane(
            origin=torch.zeros(2, dtype=torch.float64),
            directions=(axes[0], axes[1]),
            labels=(names[0], names[1]),
            shares=None,
        )
    origin = torch.zeros(n_weights, dtype=torch.float64)
    for snapshot in snapshots:
        origin += snapshot.weights / len(snapshots)
    # Squares of what is very large or small are not finite, or 0.
    size = max(float((snapshot.weights - origin).abs().max()) for snapshot in snapshots) or 1.0
    gram = torch.zeros(len(snapshots), len(snapshots), dtype=torch.float64)
    for _, piece in _pieces(snapshots, origin, size):
        gram += piece @ piece.T
    values, vectors = torch.linalg.eigh(gram)
    total = float(values.clamp_min(0).sum())
    directions = [torch.zeros(n_weights, dtype=torch.float64) for _ in range(2)]
    for columns, piece in _pieces(snapshots, origin, size):
        for i, direction in enumerate(directions):
            if len(values) > i:
                direction[columns] = vectors[:, -1 - i] @ piece
    way = (snapshots[-1].weights.double() - snapshots[0].weights.double()) / size
    first = _along(_unit(directions[0], []), way)
    second = _along(_unit(directions[1], [first]), way)
    shares = tuple(float(values[-1 - i].clamp_min(0)) / total if total > 0 and len(values) > i else 0.0 for i in (0, 1))
    labels = tuple(f"direction {i + 1} of the paths ({share:.0%} of their spread)" for i, share in enumerate(shares))
    return WeightPlane(
        origin=origin,
        directions=(first, second),
        labels=(labels[0], labels[1]),
        shares=(round(shares[0], 6), round(shares[1], 6)),
    )


def _pieces(snapshots: Sequence[Snapshot], origin: Tensor, size: float) -> Iterator[tuple[slice, Tensor]]:
    """The snapshots from the origin, in parts of a size, (n_snapshots, columns) at a time in float64."""
    for start in range(0, len(origin), _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, len(origin)))
        away = torch.stack([snapshot.weights[columns].double() - origin[columns] for snapshot in snapshots])
        yield columns, away / size


def _unit(direction: Tensor, others: Sequence[Tensor]) -> Tensor:
    """A direction of length 1 at right angles to others; any such one where it has no length to speak of."""
    for other in others:
        direction = direction - (direction @ other) * other
    length = float(direction.norm())
    if length > 1e-9:
        return direction / length
    along = torch.zeros_like(direction)
    nearly = sum((other.abs() for other in others), torch.zeros_like(direction))
    along[int(nearly.argmin())] = 1.0
    return _unit(along, others) if others else along


def _along(direction: Tensor, way: Tensor) -> Tensor:
    """Of a direction and its opposite the one that leads the given way, so that a drawing is always the same."""
    return -direction if float(direction @ way) < 0 else direction


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
    """J on a grid, and paths over it.

    Parameters
    ----------
    labels : tuple of two str
        Of the axes: two weights by name, or the two leading directions of the paths.
    shares : tuple of two float, optional
        Of the paths' variance, what lies along each axis; None for a model of two weights, where nothing is left out.
    xs, ys : ndarray of float64, (n,)
        The grid's places.
    loss : ndarray of float64, (n, n)
        ``loss[j, i]`` is J at (``xs[i]``, ``ys[j]``); NaN where it is not finite.
    paths : tuple of WeightPath
        One a run.
    """

    labels: tuple[str, str]
    shares: tuple[float, float] | None
    xs: F64
    ys: F64
    loss: F64
    paths: tuple[WeightPath, ...]

    def named(self) -> dict[str, Any]:
        """Everything by name."""
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
    """Measure the surface around some paths.

    Parameters
    ----------
    model : torch.nn.Module
        Its trained weights are set to every place of the grid in turn, and put back in the end.
    loss_at : callable
        Gives J of the model as it is: one pass over the data.
    paths : sequence of (str, sequence of Snapshot)
        The runs, by name.
    grid : int
        Places in each direction; there are grid² passes.
    done : callable, optional
        Called after every pass.

    Examples
    --------
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
    drawn = tuple(_path(label, kept, plane) for label, kept in paths)
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
    """The first trained weights of a model by name, one by one.

    Examples
    --------
    >>> weight_names(nn.Linear(2, 1), 3)
    ['weight[0,0]', 'weight[0,1]', 'bias[0]']
    """
    names: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and len(names) < most:
            shape = tuple(parameter.shape)
            names += [f"{name}[{','.join(map(str, at))}]" if at else name for at in np.ndindex(shape)][:most]
    return names[:most]


def _path(label: str, kept: Sequence[Snapshot], plane: WeightPlane) -> WeightPath:
    return WeightPath(
        label=label,
        n_steps=tuple(snapshot.n_steps for snapshot in kept),
        places=tuple(plane.place(snapshot.weights) for snapshot in kept),
    )


def _grid(places: Sequence[tuple[float, float]], n: int) -> tuple[F64, F64]:
    """Even places over the extent of the paths, and some way beyond."""
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    extent = high - low
    extent = np.maximum(extent, _LEAST_RATIO * extent.max() if extent.max() > 0 else 1.0)
    middle, half = (low + high) / 2, extent * (0.5 + _MARGIN)
    ends = [np.linspace(middle[i] - half[i], middle[i] + half[i], n) for i in (0, 1)]
    return ends[0], ends[1]
