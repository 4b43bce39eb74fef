"""Sizes, rates and durations for people."""

from __future__ import annotations

import pytest

from streamtrain.system.units import format_bytes, format_duration, format_rate, megabytes, parse_bytes


@pytest.mark.parametrize(
    ("size", "n_bytes"), [("2GB", 2_000_000_000), ("1.5 MiB", 1_572_864), (" 3kb ", 3000), (4096, 4096)]
)
def test_a_size_is_parsed(size: int | str, n_bytes: int) -> None:
    assert parse_bytes(size) == n_bytes


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (megabytes(6_035_592), "7MB"),
        (megabytes(7_000_000), "7MB"),
        (format_bytes(999), "999 B"),
        (format_bytes(16_000_000), "16.0 MB"),
        (format_bytes(1_540_000_000), "1.54 GB"),
        (format_rate(2_500_000, 2.0, "samples"), "1,250,000 samples/s"),
        (format_rate(5, 0.0, "samples"), "0 samples/s"),
        (format_duration(0.0421), "42 ms"),
        (format_duration(4.2), "4.2 s"),
        (format_duration(125), "2 min 05 s"),
        (format_duration(3725), "1 h 02 min"),
    ],
)
def test_a_figure_is_written(written: str, text: str) -> None:
    assert written == text
