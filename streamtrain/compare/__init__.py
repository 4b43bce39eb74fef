"""Update rules and optimizers side by side, from the same initial weights over the same data.

`streamtrain.compare.contest.compare` runs them, `streamtrain.compare.results` is what comes of it.
"""

from __future__ import annotations

from streamtrain.compare.contest import compare
from streamtrain.compare.results import Comparison
from streamtrain.compare.setting import Setting

__all__ = ["Comparison", "Setting", "compare"]
