"""The checksum of joined bytes from the checksums of the parts, without reading them again.

A crc is linear: that of ``a + b`` is the crc of ``a``, moved on by the length of ``b``, xor the crc of ``b``. Moving on
by a length is a 32 × 32 matrix over the integers modulo 2; those for powers of two are kept as tables of bytes.
(Mark Adler's crc32_combine in zlib is the same idea.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli, reflected (RFC 3720)

Table = tuple[int, ...]
Move = tuple[Table, Table, Table, Table]
"""For each byte of a crc, what it becomes; the whole is their xor."""


def joined(first: int, second: int, second_bytes: int) -> int:
    """The crc32c of two runs of bytes, one after the other.

    Parameters
    ----------
    first, second : int
        The crc32c of each.
    second_bytes : int
        How long the second one is.

    Examples
    --------
    >>> from streamtrain.store.codec import checksum
    >>> hex(joined(checksum(b"12345"), checksum(b"6789"), 4)), hex(checksum(b"123456789"))
    ('0xe3069283', '0xe3069283')
    """
    power = 0
    while second_bytes:
        if second_bytes & 1:
            a, b, c, d = _move(power)
            first = a[first & 255] ^ b[first >> 8 & 255] ^ c[first >> 16 & 255] ^ d[first >> 24]
        second_bytes >>= 1
        power += 1
    return first ^ second


@lru_cache(maxsize=64)
def _move(power: int) -> Move:
    """What 2 ** ``power`` more bytes do to a crc."""
    if power == 0:
        columns = [_after_one_byte(1 << bit) for bit in range(32)]
    else:
        a, b, c, d = _move(power - 1)
        half = [a[1 << bit] for bit in range(8)] + [b[1 << bit] for bit in range(8)]
        half += [c[1 << bit] for bit in range(8)] + [d[1 << bit] for bit in range(8)]
        columns = [a[x & 255] ^ b[x >> 8 & 255] ^ c[x >> 16 & 255] ^ d[x >> 24] for x in half]
    return _table(columns[:8]), _table(columns[8:16]), _table(columns[16:24]), _table(columns[24:])


def _after_one_byte(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc


def _table(columns: list[int]) -> Table:
    table = [0]
    for column in columns:
        table += [value ^ column for value in table]
    return tuple(table)
