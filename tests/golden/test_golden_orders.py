"""Orders of version 0.1.0: who resumes an older run, or repeats it, gets the same samples in the same batches.

``orders.json`` is all that a change of the order itself renews, and with it the plan, which follows from the same
rules. Where the order comes from integers alone, every number is compared; the plan's measures of quality are floats.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import golden
import numpy as np
import pytest

import streamtrain as st

KEPT: Any = json.loads((golden.GOLDEN / "orders.json").read_text())
every_order = pytest.mark.parametrize("name", golden.ORDERS)


@every_order
def test_every_epoch_has_its_order(name: str) -> None:
    data, how = golden.ORDERS[name]
    assert golden.read_orders(golden.open_golden(data), how) == KEPT["orders"][name]["epochs"]


@every_order
def test_what_is_kept_is_an_order(name: str) -> None:
    """The judges judged: each epoch takes every sample once, but for a short last batch that is left out."""
    data, how = golden.ORDERS[name]
    epochs, n, size = KEPT["orders"][name]["epochs"], golden.N_SAMPLES[data], how.get("batch_size", 256)
    for batches in epochs:
        taken = [i for batch in batches for i in batch]
        assert len(taken) == (n // size * size if how.get("drop_last") else n)
        assert set(map(len, batches[:-1])) <= {size}
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(n))
    assert len(epochs) == golden.N_EPOCHS
    is_repeated = how.get("shuffle") is False or how.get("reshuffle") == "never"
    assert len({json.dumps(batches) for batches in epochs}) == (1 if is_repeated else golden.N_EPOCHS)


@pytest.mark.parametrize("name", [name for name, kept in KEPT["orders"].items() if kept["state"]])
def test_a_kept_state_goes_on_inside_its_epoch(name: str) -> None:
    data, how = golden.ORDERS[name]
    dataset, kept = golden.open_golden(data), KEPT["orders"][name]
    assert golden.state_inside(dataset, how) == kept["state"]
    epoch, n_batches = golden.STOPPED_IN
    # Another budget and no lanes: both are the state's.
    how = {key: value for key, value in how.items() if key != "lanes"} | {"memory": "24MB"}
    with st.StreamLoader(dataset, **how) as loader:
        loader.load_state_dict(kept["state"])
        assert [batch.i.tolist() for batch in loader] == kept["epochs"][epoch][n_batches:]
        assert [batch.i.tolist() for batch in loader] == kept["epochs"][epoch + 1]


def test_every_sample_has_its_key(facts: Any) -> None:
    for epoch, kept in zip(golden.KEYED_EPOCHS, facts["keys"], strict=True):
        found = golden.keys_of(golden.open_golden("zstd"), epoch)
        assert found["keys"] == kept["keys"]
        assert found["uniform"] == kept["uniform"]
        # Logarithm and cosine, whose last bits are the processor's.
        assert np.allclose(found["normal"], kept["normal"], rtol=1e-5, atol=1e-6)


def test_the_plan_says_the_same() -> None:
    told = json.loads(
        golden.run_command("plan", "datasets/none.zarr", "--batch-size", "16", "--memory", "4MB", "--json")
    )
    assert told.pop("validation_memory") == 0  # told since validation has a share of the memory
    assert told.pop("ranks") is None  # told since ranks share the batches
    kept = copy.deepcopy(KEPT["plan"])
    assert list(told) == list(kept)
    # Of few batches it is measured over several epochs since then; the order is held by the other tests.
    places = [(told, kept, "quality"), (told, kept, "with_most_lanes")]
    places.append((told["as_good_as_random"], kept["as_good_as_random"], "quality"))
    for ours, theirs, name in places:
        now, then = ours.pop(name), theirs.pop(name)
        assert now.pop("epochs_measured") == 3
        assert list(now) == list(then)
        assert now["samples_measured"] == then["samples_measured"]
    assert told == _near(kept)


def _near(value: Any) -> Any:
    """The same, with floats that may differ in the last digits."""
    if isinstance(value, dict):
        return {key: _near(item) for key, item in value.items()}
    return pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
