"""Complex tensors seen as real ones, for sums, norms and products over real and imaginary parts alike.

Torch's gradient of a real loss with respect to a complex weight is that of its two parts, as a complex number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """View a complex tensor as a real one, (..., 2), in the same memory; return any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
