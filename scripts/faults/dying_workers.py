"""Workers of a cluster that are killed inside a shard, once for each shard and moment that is asked for."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from distributed import WorkerPlugin

from streamtrain.system.syscalls import Syscalls

MOMENTS: Final = ("before", "after")
"""Before the first file of a shard has its name, and after the last one has."""

Death = tuple[int, str]
"""The number of a shard, and the moment."""


class DyingWorkers(WorkerPlugin):  # type: ignore[misc]  # its types are not looked at
    """Kills a worker at these moments; ``folder`` keeps what has been done, for those that take its place."""

    def __init__(self, folder: Path, deaths: Collection[Death], fields: tuple[str, ...] = ("x", "y")) -> None:
        self.folder, self.deaths, self.fields = folder, deaths, fields

    def setup(self, worker: Any) -> None:
        """Have each rename of this process look whether it is the last."""
        rename = Syscalls.rename

        def dying(system: Syscalls, old: Path, new: Path) -> None:
            field, shard = place_of(new)
            if field == self.fields[0]:
                self.die((shard, "before"))
            rename(system, old, new)
            if field == self.fields[-1]:
                self.die((shard, "after"))

        setattr(Syscalls, "rename", dying)  # noqa: B010 - mypy knows no other method there

    def die(self, death: Death) -> None:
        """Kill this process, unless one before it was."""
        if death not in self.deaths:
            return
        try:
            os.close(os.open(self.folder / "{}-{}".format(*death), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def place_of(path: Path) -> tuple[str, int]:
    """The field and the shard of a file; -1 for any other."""
    for field, folder, shard in zip(path.parts, path.parts[1:], path.parts[2:], strict=False):
        if folder == "c" and shard.isdecimal():
            return field, int(shard)
    return "", -1
