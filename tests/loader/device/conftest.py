"""A simulated CUDA device for loaders: see `tests.support.simulated_cuda`."""

from contextlib import ExitStack

import pytest

from tests.support.simulated_cuda import SimulatedCuda


@pytest.fixture
def simulated():
    """Make a device, and give it to every loader that is made from then on in the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(SimulatedCuda(**options).installed())
