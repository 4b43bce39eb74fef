"""Objects that belong to one process: neither pickled nor copied."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex

from streamtrain.errors import UsageError


class OfOneProcess:
    """An object with threads, memory or a device behind it; pickling and copying are refused, with what to do instead.

    Spawned processes, ``copy.deepcopy`` and ``torch.save`` all pickle.
    """

    _instead: ClassVar[str]

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        name = type(self).__name__
        raise UsageError(
            f"a {name} cannot be pickled or copied",
            why="Threads, memory and a device of this process are behind it",
            fix=self._instead,
        )
