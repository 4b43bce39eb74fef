"""Complex tensors seen as real ones, for sums, norms and products that are over real and imaginary parts alike.

Torch's gradient of a real loss by a complex weight is the gradient by its two parts, as a complex number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_real(tensor: Tensor) -> Tensor:
    """The numbers of a tensor as real ones, in the same memory: of a complex one (..., 2), else the tensor itself.

    Examples
    --------
    >>> as_real(torch.tensor([3 + 4j])).norm(), as_real(torch.ones(2)).shape
    (tensor(5.), torch.Size([2]))
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
