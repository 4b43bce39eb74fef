"""Counter-based random words, and the two random orders made from them: pure, numpy only, no state.

A word is a function of a 64-bit key and a counter, so any word is computed without the ones before it. Keys come
from ``numpy.random.SeedSequence``, whose output numpy keeps stable; words come from integer arithmetic alone. So
the results do not depend on numpy's version.

Sources: splitmix64's finaliser (G. Steele, D. Lea, C. Flood, *Fast splittable pseudorandom number generators*,
OOPSLA 2014); multiples of an irrational number modulo 1, and why small partial quotients spread them best (L. Kuipers,
H. Niederreiter, *Uniform distribution of sequences*, 1974, chapter 2.3).
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]

MIX: Final = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD: Final = 1 << 64
_CONVERGENTS: Final = 100
"""Terms of a continued fraction that fix its first 64 bits, whatever the terms."""


def random_key(seed: int, *path: int) -> int:
    """Return the 64-bit key for a purpose, from the seed and a path of small integers (epoch, purpose)."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0])


def words(key: int, counters: npt.NDArray[np.integer[Any]]) -> U64:
    """Return one 64-bit random word per counter: ``mix64(key + counter)``, in a new array of the counters' shape."""
    z = counters.astype(np.uint64)
    z += np.uint64(key)
    shifted = z >> np.uint64(30)
    z ^= shifted
    z *= np.uint64(MIX[0])
    z ^= np.right_shift(z, np.uint64(27), out=shifted)
    z *= np.uint64(MIX[1])
    z ^= np.right_shift(z, np.uint64(31), out=shifted)
    return z


def word_below(key: int, bound: int) -> int:
    """Draw one random integer in [0, bound)."""
    return int(words(key, np.zeros(1, np.int64))[0]) * bound >> 64


def words_below(key: int, counters: npt.NDArray[np.integer[Any]], bounds: I64) -> I64:
    """Draw one random integer in [0, bound) per counter, ``word * bound >> 64`` exactly."""
    random = words(key, counters)
    if len(bounds) and int(bounds.max()) >> 32:
        exact = [word * bound >> 64 for word, bound in zip(random.tolist(), bounds.tolist(), strict=True)]
        return np.array(exact, np.int64)
    # The upper half of a product of 64 and 32 bits, from two products that fit.
    bound, half = bounds.astype(np.uint64), np.uint64(32)
    low = (random & np.uint64(0xFFFFFFFF)) * bound >> half
    return (((random >> half) * bound + low) >> half).astype(np.int64)


def random_orders(random: U64, lengths: npt.NDArray[np.integer[Any]], *, width: int | None = None) -> U32:
    """Draw a random order of 0..length-1 for each row of words, which are overwritten; the rest come last, in order.

    The words' low bits are replaced by the index and the row is sorted, so that no two are equal and no sorting
    algorithm can matter. The bits are shared out by ``width``, the most things that any row may ever have, so that an
    order does not depend on which others are drawn with it.
    """
    bits = max((width or random.shape[1]) - 1, 1).bit_length()
    # Half the words' bits are enough where they leave 18 random ones; such keys sort three times faster.
    if bits <= 14:
        random >>= np.uint64(32)
        return _sorted_indexes(random.astype(np.uint32), lengths, bits)
    return _sorted_indexes(random, lengths, bits).astype(np.uint32)


def _sorted_indexes(keys: npt.NDArray[Any], lengths: npt.NDArray[np.integer[Any]], bits: int) -> npt.NDArray[Any]:
    """Return the order of each row's keys, in their memory; indexes from the row's length on come last."""
    unsigned, width = keys.dtype.type, keys.shape[1]
    index = np.arange(width, dtype=unsigned)
    keys >>= unsigned(bits)
    keys <<= unsigned(bits)
    keys |= index
    # Usually few rows are short.
    short = np.flatnonzero(lengths < width)
    if len(short):
        over = unsigned(~unsigned(0) << unsigned(bits))
        keys[short] |= np.where(index >= lengths[short, None], over, unsigned(0))
    keys.sort(axis=1)
    keys &= unsigned((1 << bits) - 1)
    return keys


def random_orders_by(ranks: npt.NDArray[np.integer[Any]], n_ranks: int, random: U64) -> I64:
    """Order 0..width-1 of each row by rank, each in [0, n_ranks), and at random within a rank; overwrite the words.

    As in `random_orders`, the words' low bits are replaced by the index.
    """
    width = random.shape[1]
    bits, rank_bits = max(width - 1, 1).bit_length(), (n_ranks - 1).bit_length()
    n_bits = 32 if bits + rank_bits <= 14 else 64
    dtype = np.dtype(f"u{n_bits // 8}")
    random >>= np.uint64(64 - n_bits + rank_bits)
    keys: npt.NDArray[Any] = random.astype(dtype, copy=False)
    if rank_bits:
        keys |= ranks.astype(dtype, copy=False) << dtype.type(n_bits - rank_bits)
    return _sorted_indexes(keys, np.full(len(keys), width), bits).astype(np.int64)


def even_orders(random: U64, lengths: npt.NDArray[np.integer[Any]], width: int) -> U32:
    """Draw an even random order of 0..length-1 for each word: every stretch of it spreads over the range.

    Thing i is ranked by ``start + i * step`` modulo 1, where the word gives the start and picks the step. Things that
    follow each other in this order, in any number and also around its end, lie on one arc of the circle, and the
    multiples of a step with small partial quotients fall on every arc evenly. So an order may be repeated, and any
    stretch of the repetition spreads as well. Things from a row's length to ``width`` come last.
    """
    step = NOBLE_STEPS[(random % np.uint64(len(NOBLE_STEPS))).astype(np.intp)]
    return random_orders(random[:, None] + np.arange(width, dtype=np.uint64) * step[:, None], lengths)


def _step(*terms: int) -> int:
    """Compute the continued fraction [0; terms, 1, 1, 1, ...] in units of 2**-64."""
    above, below = 1, 1
    for term in reversed((*terms, *(1,) * _CONVERGENTS)):
        above, below = below, term * below + above
    return (above << 64) // below


def _both_ways(steps: list[int]) -> U64:
    return np.array([way for step in steps for way in (step, _WORD - step)], np.uint64)


NOBLE_STEPS: Final[U64] = _both_ways([_step(*terms) for terms in product((1, 2, 3), repeat=3)])
"""Numbers that end like the golden ratio after three terms of at most 3, forwards and backwards, in units of 2**-64.

The golden ratio's multiples spread best; these make many orders, each nearly as even.
"""
