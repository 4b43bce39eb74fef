"""torch's random state, seeded by purpose and put back."""

from __future__ import annotations

import torch

from streamtrain.models.seeding import seeded_random


def test_a_seed_and_a_key_decide_what_is_drawn() -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed, key in ((0, 1), (0, 1), (0, 2), (1, 1)):
        with seeded_random(seed, key):
            drawn.append(float(torch.rand(())))
        assert torch.equal(torch.get_rng_state(), before)
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3
