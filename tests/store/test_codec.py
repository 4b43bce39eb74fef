"""Encoding, decoding, choosing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamtrain.errors import UnknownName, UsageError
from streamtrain.store.codec import (
    MOST_ENCODABLE_BYTES,
    check_encodable,
    checksum,
    choose_codec,
    combine_crc32c,
    decode,
    encode,
    header_mismatch,
    parse_codec,
)
from streamtrain.store.layout import CODECS, Codec, Field, Layout


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "int64"])
def test_round_trip(codec: Codec, dtype: str) -> None:
    block = (np.arange(700).reshape(100, 7) % 5).astype(dtype)
    out = np.empty_like(block)
    decode(encode(block, codec), out, codec)
    np.testing.assert_array_equal(out, block)


def test_uncompressed_is_a_view() -> None:
    block = np.zeros((4, 4), np.float32)
    view = encode(block, "none")
    block[0, 0] = 1.0
    assert bytes(view) == block.tobytes()


def test_choice_follows_sizes() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4000, 16), np.uint8)
    # Three bits in eight are constant: both save them, and entropy coding gains nothing more.
    flat = rng.integers(0, 32, (4000, 16), np.uint8)
    # Skewed values leave zstd's entropy coder something that lz4 cannot use.
    skewed = (rng.random((4000, 16)) < 0.1).astype(np.uint8)
    assert [choose_codec([rows], 1000) for rows in (noise, flat, skewed)] == ["none", "lz4", "zstd"]
    assert choose_codec([noise, np.zeros(10)], 1000) == "none"


def test_codec_names() -> None:
    assert parse_codec("auto") == "auto"
    with pytest.raises(UnknownName, match="did you mean 'zstd'") as caught:
        parse_codec("zst")
    assert caught.value.exit_code == 2


def test_blosc_limit_is_refused() -> None:
    wide = Field(name="x", dtype=np.dtype("uint8"), shape=(MOST_ENCODABLE_BYTES + 1,))
    layout = Layout(fields=(wide,), n_samples=1, block_rows=1, shard_blocks=1, codec="lz4")
    with pytest.raises(UsageError, match="codec='none'"):
        check_encodable(layout)


def test_the_checksum_is_the_crc32c_of_rfc_3720() -> None:
    assert checksum(b"123456789") == checksum(b"6789", checksum(b"12345")) == 0xE3069283


@given(one=st.binary(max_size=300), other=st.binary(max_size=300))
def test_checksums_of_joined_bytes_follow_from_those_of_the_parts(one: bytes, other: bytes) -> None:
    assert combine_crc32c(checksum(one), checksum(other), len(other)) == checksum(one + other)


def test_a_header_that_names_other_sizes() -> None:
    data = encode(np.zeros(1000, np.uint8), "lz4")
    assert header_mismatch(data, encoded_bytes=len(data), n_bytes=1000) is None
    told = "It would decode to 1,000 bytes; a block has 24"
    assert header_mismatch(data, encoded_bytes=len(data), n_bytes=24) == told
    assert (
        header_mismatch(data, encoded_bytes=99, n_bytes=1000)
        == f"It says it has {len(data)} encoded bytes; 99 are stored"
    )
    assert "less than their header of 16" in str(header_mismatch(data, encoded_bytes=15, n_bytes=1000))
