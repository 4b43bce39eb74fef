"""A run that ends without warning: its loader's consumer dies in the middle of an epoch."""

from __future__ import annotations

from typing import Any

import streamtrain as st


class Killed(Exception):
    """In place of a process that is killed."""


class Doomed(st.StreamLoader):
    """A loader whose consumer dies after ``left`` batches."""

    left = 0

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if not self.left:
                raise Killed
            self.left -= 1
            yield batch
