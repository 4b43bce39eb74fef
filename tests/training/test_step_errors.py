"""The batch size that fits where a step did not."""

from __future__ import annotations

import pytest

from streamtrain.training.step_errors import failed_allocation_bytes, suggest_batch_size


@pytest.mark.parametrize(("room_gb", "needed_gb", "expected"), [(3, 4, 128), (1, 8, 32), (0, 8, 0), (-1, 8, 0)])
def test_the_batch_size_is_at_most_half_and_less_where_the_room_is(room_gb, needed_gb, expected):
    assert suggest_batch_size(256, room_bytes=room_gb * 10**9, needed_bytes=needed_gb * 10**9) == expected


@pytest.mark.parametrize(
    ("message", "n_bytes"),
    [
        ("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has ...", 1_610_612_736),
        ("CUDA out of memory. Tried to allocate 512 bytes.", 512),
        ("out of memory", 0),
    ],
)
def test_the_failed_allocation_is_read_from_torchs_message(message, n_bytes):
    assert failed_allocation_bytes(RuntimeError(message)) == n_bytes
