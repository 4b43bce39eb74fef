"""Targets of a regression in units of their spread, ``(y - mean) / std``, and outputs in the data's own units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamtrain.errors import Argument, Fix, UsageError
from streamtrain.models.losses import Loss
from streamtrain.models.normalization import InputStatistics, spread_of
from streamtrain.store.layout import Field

_LOSSES: Final = frozenset(
    {"mse", "l1", "huber", "SmoothL1Loss", "smooth_l1_loss", "mse_loss", "l1_loss", "huber_loss"}
)
_COUNTS: Final = frozenset({"poisson", "PoissonNLLLoss", "poisson_nll_loss"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TargetNormalization:
    """Mean and standard deviation of each target, float64 of shape (k,); a ``std`` of 0 counts as 1."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    def standardize(self, y: Tensor) -> Tensor:
        """Return targets (B, ...) in units of their spread, computed in float64, as float32."""
        return ((_wide(y) - self._of(self.mean, y)) / self._of(self.std, y)).float().to(y.device)

    def restore(self, output: Tensor) -> Tensor:
        """Return outputs (B, ...) in the data's own units, float64."""
        return _wide(output) * self._of(self.std, output) + self._of(self.mean, output)

    def _of(self, values: npt.NDArray[np.float64], like: Tensor) -> Tensor:
        # Made of the numbers each time: they are few, and may be needed on any device.
        return torch.from_numpy(values).to("cpu" if like.device.type == "mps" else like.device)

    def config(self) -> dict[str, list[float]]:
        """Return it as a run's configuration keeps it."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any] | None) -> TargetNormalization | None:
        """Make it of what a run's configuration keeps; None of a run whose targets are as they are stored."""
        if config is None or config["mean"] is None:
            return None
        mean, std = (np.array(config[name], np.float64) for name in ("mean", "std"))
        return cls(mean=mean, std=std)


def is_target_normalization(value: object) -> bool:
    """Whether a value of a file is what `TargetNormalization.of_config` takes."""
    if not isinstance(value, dict) or value.keys() != {"mean", "std"}:
        return value is None
    mean, std = value["mean"], value["std"]
    if mean is None and std is None:
        return True
    are_lists = isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) > 0
    return are_lists and all(_is_finite(number) for number in (*mean, *std)) and all(number > 0 for number in std)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _wide(values: Tensor) -> Tensor:
    return values.cpu().double() if values.device.type == "mps" else values.double()


def takes_normalized_target(loss: Loss) -> bool:
    """Whether a loss is one of differences, whose targets may be rescaled."""
    return loss.kind == "values" and loss.name in _LOSSES


def counts_events(loss: Loss) -> bool:
    """Whether a loss takes counts, or rates, of at least 0."""
    return loss.name in _COUNTS


def normalize_target(field: Field, statistics: InputStatistics) -> TargetNormalization:
    """Make the normalization of a field of targets; those of several axes share one scale."""
    of = statistics if len(field.shape) <= 1 else statistics.overall
    mean, std = (np.array(value, np.float64).reshape(-1) for value in (of.mean, of.std))
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UsageError(
            f"field {field.name} has a mean or standard deviation that is not finite",
            fix=Fix(Argument("normalize_target", off=True)),
        )
    std = spread_of(field, mean, std)
    return TargetNormalization(mean=mean, std=np.where(std == 0, 1.0, std))


def takes_logarithms(loss: Loss) -> bool:
    """Whether a loss takes the logarithms of what is predicted."""
    return counts_events(loss) and bool(getattr(loss.mean, "log_input", True))


def in_units_of_data(output: Tensor, normalization: TargetNormalization | None = None, *, is_log: bool) -> Tensor:
    """Return a regression's outputs as predictions: in the targets' own units, and of logarithms as counts."""
    if normalization is not None:
        return normalization.restore(output)
    return _wide(output).exp() if is_log else output
