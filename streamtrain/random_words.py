"""Counter-based random words, and the two random orders made from them: pure, numpy only, no state.

A word is a function of a 64-bit key and a counter, so any word is computed without the ones before it. Keys come
from ``numpy.random.SeedSequence``, whose output numpy keeps stable; words come from integer arithmetic alone. So
nothing here depends on numpy's version.

Sources: splitmix64's finaliser (G. Steele, D. Lea, C. Flood, *Fast splittable pseudorandom number generators*,
OOPSLA 2014); Owen scrambling by a hash (S. Laine, T. Karras, *Stratified sampling for stochastic transparency*,
EGSR 2011).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

_INDEX_BITS_16: Final = 16
_MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_LAINE_KARRAS: Final = (0x6C50B47C, 0xB82F1E52, 0xC7AFE638, 0x8D22F6E6)


def key(seed: int, *path: int) -> int:
    """The 64-bit key for a purpose, from the seed and a path of small integers (epoch, purpose).

    Examples
    --------
    >>> key(0, 0, 1) == key(0, 0, 1), key(0, 0, 1) == key(0, 1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0])


def words(key: int, counters: npt.NDArray[np.integer[Any]]) -> U64:
    """One 64-bit random word per counter: ``mix64(key + counter)``, in a new array of the counters' shape.

    Examples
    --------
    >>> [f"{word:016x}" for word in words(0, np.arange(1, 3))]
    ['5692161d100b05e5', 'dbd238973a2b148a']
    """
    z = counters.astype(np.uint64)
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(_MIX[0])
    z ^= z >> np.uint64(27)
    z *= np.uint64(_MIX[1])
    z ^= z >> np.uint64(31)
    return z


def word_below(key: int, bound: int) -> int:
    """One random integer in [0, bound)."""
    return int(words(key, np.zeros(1, np.int64))[0]) * bound >> 64


def random_orders(random: U64, lengths: npt.NDArray[np.integer[Any]]) -> U32:
    """A random order of 0..length-1 for each row of words.

    The words' low bits are replaced by the index and the row is sorted, so that no two are equal and no sorting
    algorithm can matter.

    Parameters
    ----------
    random : (n, width) uint64
        Random words, overwritten.
    lengths : (n,) integers
        How many of each row's things to order, at most ``width``; the rest come last, in order.

    Returns
    -------
    (n, width) uint32
    """
    width = random.shape[1]
    index = np.arange(width, dtype=np.uint32)
    bits = max(width - 1, 1).bit_length()
    ragged = bool((lengths < width).any())
    # Half the words' bits are enough where they leave 18 random ones; such keys sort three times faster.
    if bits <= 14:
        short = (random >> np.uint64(32)).astype(np.uint32)
        short >>= np.uint32(bits)
        short <<= np.uint32(bits)
        short |= index
        if ragged:
            short |= np.where(index >= lengths[:, None], np.uint32(0xFFFFFFFF) << np.uint32(bits), np.uint32(0))
        short.sort(axis=1)
        return short & np.uint32((1 << bits) - 1)
    random >>= np.uint64(bits)
    random <<= np.uint64(bits)
    random |= index.astype(np.uint64)
    if ragged:
        over = np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(bits)
        random |= np.where(index >= lengths[:, None], over, np.uint64(0))
    random.sort(axis=1)
    return (random & np.uint64((1 << bits) - 1)).astype(np.uint32)


def even_orders(scrambles: U64, lengths: npt.NDArray[np.integer[Any]], width: int) -> U32:
    """An even random order of 0..length-1 for each scramble: every prefix of it spreads over the range.

    Things are ranked by ``bitrev32(LK(i + scramble))``, their scrambled radical inverse in base 2. Of its 32 bits
    the upper 16 count where ``width`` is at most 65,536 (a table reverses them); the index fills the rest.

    Parameters
    ----------
    scrambles : (n,) uint64
        Random words; the low 32 bits count.
    lengths : (n,) integers
        How many things to order in each row, at most ``width``; the rest come last, in order.

    Returns
    -------
    (n, width) uint32
    """
    index = np.arange(width, dtype=np.uint32)
    over = index >= lengths[:, None] if bool((lengths < width).any()) else None
    if width <= 1 << _INDEX_BITS_16:
        hashed = _laine_karras(scrambles.astype(np.uint16)[:, None] + index.astype(np.uint16))
        ranks = _REVERSED_16.take(hashed)
        ranks |= index
        if over is not None:
            ranks |= np.where(over, np.uint32(0xFFFF0000), np.uint32(0))
        ranks.sort(axis=1)
        return ranks & np.uint32(0xFFFF)
    wide = _reverse_32(_laine_karras(scrambles.astype(np.uint32)[:, None] + index)).astype(np.uint64) << np.uint64(32)
    wide |= index.astype(np.uint64)
    if over is not None:
        wide |= np.where(over, np.uint64(0xFFFFFFFF00000000), np.uint64(0))
    wide.sort(axis=1)
    return wide.astype(np.uint32)


def _laine_karras(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # Each round only carries bits upwards, so the low 16 bits of the 32-bit hash are the 16-bit hash.
    for factor in _LAINE_KARRAS:
        x ^= x * x.dtype.type(factor & np.iinfo(x.dtype).max)
    return x


def _reverse_32(x: U32) -> U32:
    for shift, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF)):
        x = ((x >> np.uint32(shift)) & np.uint32(mask)) | ((x & np.uint32(mask)) << np.uint32(shift))
    return (x >> np.uint32(16)) | (x << np.uint32(16))


_REVERSED_16: Final[U32] = _reverse_32(np.arange(1 << 16, dtype=np.uint32))
"""bitrev32 of every 16-bit number: the reversed bits stand in the upper half."""
