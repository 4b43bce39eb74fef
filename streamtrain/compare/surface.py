"""The error surface J around the paths that runs took over it.

J(w) is the mean loss over the whole training data at the weights w; every value is a pass of its own over the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from streamtrain.compare.trajectory import Plane, Snapshot, plane_of, put

F64 = npt.NDArray[np.float64]

_MARGIN: Final = 0.18
"""How far beyond the paths the surface reaches, as a share of their extent."""
_LEAST_RATIO: Final = 0.2
"""The shorter side of the surface is at least this share of the longer one: a straight path has surroundings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """A run's path over the surface: the places of its weights, in order, and the updates made until each."""

    label: str
    n_steps: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
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
    paths : tuple of Path
        One a run.
    """

    labels: tuple[str, str]
    shares: tuple[float, float] | None
    xs: F64
    ys: F64
    loss: F64
    paths: tuple[Path, ...]

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
) -> Surface:
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
    plane = plane_of(weight_names(model, 2), [snapshot for _, kept in paths for snapshot in kept])
    drawn = tuple(_path(label, kept, plane) for label, kept in paths)
    xs, ys = _grid([place for path in drawn for place in path.places], grid)
    before = [parameter.detach().clone() for parameter in parameters]
    loss = np.empty((grid, grid))
    try:
        for j, y in enumerate(ys):
            for i, x in enumerate(xs):
                put(parameters, plane.at(float(x), float(y)))
                loss[j, i] = loss_at()
                done()
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, before, strict=True):
                parameter.copy_(weight)
    loss[~np.isfinite(loss)] = np.nan
    return Surface(labels=plane.labels, shares=plane.shares, xs=xs, ys=ys, loss=loss, paths=drawn)


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


def _path(label: str, kept: Sequence[Snapshot], plane: Plane) -> Path:
    return Path(
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
