"""Random numbers keyed by sample, and the transforms that draw from them.

A key is a function of the seed, the epoch and the sample, whatever batch, order, thread or resumed run the sample is
in, so every epoch augments anew. The numbers are words of `streamtrain.system.counter_rng` over ``key + counter``,
computed with torch's integers where the keys are, and the same on every device. `normal` puts them through logarithm
and cosine, whose last bit may differ from device to device.

Source: G. E. P. Box, M. E. Muller, *A note on the generation of random normal deviates*, 1958.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from streamtrain.errors import UsageError, printable
from streamtrain.loader.decode.delivery import SAMPLE_KEYS
from streamtrain.shuffle.order import I64, EpochOrder
from streamtrain.shuffle.positions import iter_positions
from streamtrain.system.arguments import check_int, check_optional_functions, is_int
from streamtrain.system.calls.public import public
from streamtrain.system.counter_rng import MIX, random_key, words

_GAMMA: Final = 0x9E3779B97F4A7C15
_BITS: Final = {torch.float32: 24, torch.float64: 53}


def sample_keys(seed: int, epoch: int, samples: I64) -> Tensor:
    """Derive the key of each sample in an epoch: shape (n,), int64, all 64 bits random."""
    return torch.from_numpy(words(random_key(seed, epoch, SAMPLE_KEYS), samples).view(np.int64))


@public
def uniform(keys: Tensor, shape: Sequence[int] = (), *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw numbers in [0, 1) for each sample.

    Parameters
    ----------
    keys : (n,) int64 tensor
        What a loader hands to ``transform(batch, keys)``.
    shape : sequence of int
        Shape of the numbers of one sample.
    draw : int
        Number of the draw: the same keys and draw give the same numbers, so each call in a transform needs its own.
    dtype : torch.dtype
        float32 (multiples of 2**-24) or float64 (of 2**-53).

    Returns
    -------
    (n, *shape) tensor on the keys' device

    Raises
    ------
    UsageError
        The keys are not an int64 vector, or the dtype is neither of the two.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.zeros((1000, 3))}, tempfile.mkdtemp() + "/d.zarr")
    >>> def transform(batch, keys):
    ...     return st.uniform(keys, (3,)), st.uniform(keys, (3,), draw=1)
    >>> with st.StreamLoader(dataset, batch_size=1000, transform=transform) as loader:
    ...     first, second = next(iter(loader))
    >>> first.shape, bool((first >= 0).all() and (first < 1).all()), bool((first == second).any())
    (torch.Size([1000, 3]), True, False)
    >>> round(first.mean().item(), 1)
    0.5
    """
    if not isinstance(dtype, torch.dtype) or dtype not in _BITS:
        raise UsageError(f"dtype is {dtype!r:.80}", fix="torch.float32 or torch.float64")
    bits = _BITS[dtype]
    return _shifted(_words(keys, shape, draw), 64 - bits).to(dtype) * 2.0**-bits


@public
def normal(keys: Tensor, shape: Sequence[int] = (), *, draw: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw normal numbers, of mean 0 and variance 1, for each sample; parameters and errors are those of `uniform`.

    They are computed from `uniform` with the same keys and draw: if you use both, give one of them another ``draw``.

    Examples
    --------
    >>> import torch, streamtrain as st
    >>> numbers = st.normal(torch.arange(1000), (100,))
    >>> abs(round(numbers.mean().item(), 1)), round(numbers.std().item(), 1)
    (0.0, 1.0)
    """
    pairs = uniform(keys, (2, *shape), draw=draw, dtype=dtype)
    # 1 - u lies in (0, 1], where the logarithm is finite.
    return torch.sqrt(-2 * torch.log1p(-pairs[:, 0])) * torch.cos(2 * math.pi * pairs[:, 1])


def _words(keys: Tensor, shape: Sequence[int], draw: int) -> Tensor:
    if not isinstance(keys, Tensor) or keys.is_nested or keys.dtype != torch.int64 or keys.ndim != 1:
        told = (
            f"{keys.dtype} of shape {tuple(keys.shape)}"
            if isinstance(keys, Tensor) and not keys.is_nested
            else f"{keys!r:.80}"
        )
        raise UsageError(f"keys are {told}", fix="the keys given to transform(batch, keys)")
    if not isinstance(shape, Sequence) or not all(is_int(length, 0) for length in shape):
        raise UsageError(f"shape is {shape!r:.80}; it must be a list of lengths", fix="(28, 28), say")
    check_int(draw, "draw", least=0)
    starts = _mixed(keys + _signed((draw + 1) * _GAMMA))
    counters = torch.arange(math.prod(shape), dtype=torch.int64, device=keys.device)
    return _mixed(starts[:, None] + counters).view(len(keys), *shape)


def _mixed(z: Tensor) -> Tensor:
    """Apply ``mix64`` of `streamtrain.system.counter_rng`; torch's int64 wraps as uint64 does."""
    z = (z ^ _shifted(z, 30)) * _signed(MIX[0])
    z = (z ^ _shifted(z, 27)) * _signed(MIX[1])
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift right, zeros coming in: torch's own shift copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


Transform = Callable[..., Any]  # ``transform(batch)`` or ``transform(batch, keys)``, yielded in place of a batch

_INDEX_SAMPLES: Final = 8192


def takes_keys(transform: Transform | None) -> bool:
    """Whether a function has a second positional argument without a default."""
    if transform is None:
        return False
    try:
        parameters = inspect.signature(transform).parameters.values()
    except (TypeError, ValueError):
        # Some functions written in C have no signature; usually they take a batch alone.
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return len(needed) > 1


def check_transform(transform: Transform | None) -> None:
    """Refuse what cannot be called with a batch, and its keys where it takes two arguments."""
    check_optional_functions(transform=transform)
    if transform is None:
        return
    try:
        signature = inspect.signature(transform)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * (2 if takes_keys(transform) else 1))
    except TypeError as error:
        raise UsageError(
            f"transform is {_name(transform)}{signature}, which cannot be called with a batch: {error}",
            why="A transform takes the batch alone, or the batch and a key for each sample",
            fix="transform(batch) or transform(batch, keys); functools.partial binds any other argument",
        ) from error


def transformed(transform: Transform, *given: Any) -> Any:
    """Call a transform; refuse that it returns what is no batch of tensors."""
    try:
        batch = transform(*given)
    except Exception as error:
        error.add_note(printable(f"in your transform {_name(transform)}"))
        raise
    if (odd := _no_tensors(batch)) is None:
        return batch
    what = f"the transform {_name(transform)} returned {odd}"
    if batch is None:
        raise UsageError(what, fix="end it in: return batch")
    why = "A transform returns a tensor, or tensors in a tuple, a list or a dict"
    if len(given) > 1 and any(item is given[0] for item in _items(batch)):
        names = ", ".join(f"batch.{name}" for name in getattr(given[0], "_fields", ()))
        why = f"{why}. Of its two arguments the first is the whole batch, and the second a key for each sample"
        raise UsageError(what, why=why, fix=f"lambda batch: ({names}), say, for tuples")
    raise UsageError(what, why=why, fix="batch._replace(...), or a tuple or dict of its tensors")


def _no_tensors(batch: Any) -> str | None:
    """Say what is no batch of tensors; text and numbers may stand among them."""
    if batch is None or isinstance(batch, str | bytes | int | float | np.ndarray | np.generic):
        return "None" if batch is None else f"a value of {type(batch).__name__}"
    for item in _items(batch):
        if isinstance(item, np.ndarray) or hasattr(item, "_asdict"):
            return f"a {type(batch).__name__} with a {type(item).__name__} in it"
    return None


def _items(batch: Any) -> Collection[Any]:
    if isinstance(batch, Mapping):
        return batch.values()
    return batch if isinstance(batch, tuple | list) else ()


def _name(transform: Transform) -> str:
    return str(getattr(transform, "__qualname__", type(transform).__name__)).rpartition("<locals>.")[2]


def named(transform: Transform | None) -> Transform:
    """Make the transform that ends in a dict of tensors by name, with as many arguments."""

    def with_keys(batch: Any, keys: Tensor) -> dict[str, Tensor]:
        return _by_name(transformed(transform, batch, keys) if transform else batch)

    def alone(batch: Any) -> dict[str, Tensor]:
        return _by_name(transformed(transform, batch) if transform else batch)

    return with_keys if takes_keys(transform) else alone


def _by_name(batch: Any) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping) and not hasattr(batch, "_asdict"):
        raise UsageError(
            f"as_dict=True, and the transform returned a {type(batch).__name__}, which has no names",
            fix="return batch._replace(...) or a dict from it",
        )
    return dict(batch) if isinstance(batch, Mapping) else batch._asdict()


def batch_samples(order: EpochOrder, start: int, stop: int, batch_size: int) -> Iterator[I64]:
    """Yield the samples of each batch at positions [start, stop) of an epoch."""
    rest = np.empty(0, np.int64)
    for piece in iter_positions(order, start, index_samples=max(batch_size, _INDEX_SAMPLES)):
        samples = order.run_first[piece.visits] + piece.rows
        rest = np.concatenate([rest, samples[: max(stop - piece.start, 0)]])
        while len(rest) >= batch_size:
            yield rest[:batch_size]
            rest = rest[batch_size:]
    if len(rest):
        yield rest
