"""Fields of a table as inputs of a model: numbers, marks of missing values, and embedded categories."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from streamtrain.errors import InputError
from streamtrain.store.layout import Field

NUMBERS: Final = "x"
MISSING: Final = "x_missing"
CATEGORIES: Final = "cat"
FIELDS: Final = (NUMBERS, MISSING, CATEGORIES)
"""The fields of a table that a model may learn from."""
_MOST_WIDTH: Final = 600


def holds_categories(field: Field) -> bool:
    """Whether a field holds codes of categories, one a column."""
    return field.name == CATEGORIES and field.dtype.kind in "iu"


def is_scaled(field: Field) -> bool:
    """Whether normalization may rescale a field: codes and marks keep their meaning."""
    return not (holds_categories(field) or (field.name == MISSING and field.dtype.kind == "b"))


def embedding_width(size: int) -> int:
    """Return the width of a column's embedding: the rule of thumb of fastai's tabular models."""
    return min(_MOST_WIDTH, round(1.6 * math.pow(size, 0.56)))


class CategoryEmbeddings(nn.Module):
    """An embedding for each column of codes (B, columns); the outputs are listed column by column."""

    sizes: Tensor

    def __init__(self, sizes: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(size, width) for size, width in zip(sizes, widths, strict=True))
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)

    def forward(self, codes: Tensor) -> list[Tensor]:
        codes = codes.reshape(len(codes), -1).long()
        # Elsewhere it would stop the device, or split what is compiled; the stored extremes are checked before.
        if codes.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(codes)
        return [embed(codes[:, column]) for column, embed in enumerate(self.columns)]

    def _check(self, codes: Tensor) -> None:
        wrong = (codes < 0) | (codes >= self.sizes)
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise InputError(
                f"code {int(codes[row, column])} in column {column} of {CATEGORIES}; the model knows 0 to "
                f"{int(self.sizes[column]) - 1}",
                fix="data with the categories of the training data",
            )


class TableModel(nn.Module):
    """The fields of a table, in the order of ``names``, brought to one vector a sample for the layers after.

    Without layers, each column of categories adds its embedding to the output of ``numbers``.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        embeddings: CategoryEmbeddings | None,
        *,
        numbers: nn.Linear | None = None,
        layers: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.names = names
        self.embeddings = embeddings
        self.numbers = numbers
        self.layers = layers

    def forward(self, *fields: Tensor) -> Tensor:
        weight = next(self.parameters())
        parts: list[Tensor] = []
        embedded: list[Tensor] = []
        for name, value in zip(self.names, fields, strict=True):
            if name == CATEGORIES and self.embeddings is not None:
                embedded = self.embeddings(value)
            else:
                flat = value.reshape(len(value), -1)
                parts.append(flat.to(weight.dtype) if flat.dtype == torch.bool else flat)
        if self.layers is not None:
            output: Tensor = self.layers(torch.cat([*parts, *embedded], dim=1))
            return output
        summed = [self.numbers(torch.cat(parts, dim=1))] if self.numbers is not None else []
        return torch.stack([*summed, *embedded]).sum(0)
