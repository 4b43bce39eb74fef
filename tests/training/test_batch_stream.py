"""Warnings and errors about a stream: a device that waits, and weights that have no mean."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

import streamtrain as st
from streamtrain.errors import InputError, UsageError
from streamtrain.training.batch_stream import (
    check_weight_field,
    check_weights,
    warn_of_waiting_device,
    zero_weight_error,
)


@pytest.mark.parametrize(
    ("device", "update", "message"),
    [
        ("cpu", "batch", None),
        ("cpu", "sample", None),
        ("cuda:0", "batch", r"the loader's batches stay in host memory, .*device='cuda:0', which brings them ahead"),
        ("cuda:0", "sample", "the sample rule on cuda:0: every step waits for the device"),
    ],
)
def test_what_leaves_a_device_idle_is_warned_of(tmp_path, device, update, message):
    data = st.ingest({"y": np.arange(4)}, tmp_path / "d.zarr")
    with warnings.catch_warnings(record=True) as caught, st.StreamLoader(data) as loader:
        warnings.simplefilter("always")
        warn_of_waiting_device(loader, torch.device(device), update)
    assert len(caught) == (message is not None)
    assert message is None or re.search(message, str(caught[0].message))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4, 2), r"field w has shape \(2,\) a sample; a weight is one number"),
        (torch.ones(4, dtype=torch.complex64), "field w is complex"),
    ],
)
def test_a_field_of_weights_holds_one_real_number_a_sample(weight, message):
    with pytest.raises(UsageError, match=message):
        check_weight_field("w", weight)
    check_weight_field("w", torch.ones(4))


@pytest.mark.parametrize(
    ("weights", "samples", "message"),
    [
        ([1.0, -2.0, 0.0], [70, 3, 12], r"field w: the weight of sample 3 is -2\.0\. .*Fix: weights of at least 0"),
        ([1.0, -2.0, 0.0], None, r"the weight of row of the batch 1 is -2\.0"),
        ([float("nan")] * 10, range(10), r"of 7 is nan, and 2 more of the batch"),
    ],
)
def test_bad_weights_are_named(weights, samples, message):
    with pytest.raises(InputError, match=message):
        check_weights("w", torch.tensor(weights), lambda: None if samples is None else np.array(samples))


def test_an_epoch_without_weight_says_where_it_went():
    assert str(zero_weight_error("w")).startswith("field w: the weights of all samples of the epoch sum to 0")
    assert "the class that the loss ignores" in str(zero_weight_error(None))
