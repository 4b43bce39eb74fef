"""When to wait for threads no longer: each read has its deadline from its own start, and so has all else that is done.

A disk that is slow but answers is waited for, however long a batch takes. A read that does not come back is named, by
field, block, samples and file, though other blocks still flow and nobody has come to wait for this one.
"""

from __future__ import annotations

import time
from typing import Final

from streamtrain.blocks import BlockReader, UnderWay
from streamtrain.errors import StallError
from streamtrain.stacks import stacks
from streamtrain.workers import Workers

_GRACE_SECONDS: Final = 0.5


class Deadline:
    """How long one wait for the threads may go on, from when this is made; the workers' lock is held by the caller.

    Parameters
    ----------
    reader : BlockReader
        What reads.
    workers : Workers
        The threads.
    timeout : float or None
        Seconds that a read may take, or that nothing may happen; None is no deadline.
    what : str
        What did not happen, where no read is to blame.
    """

    def __init__(self, reader: BlockReader, workers: Workers, timeout: float | None, what: str) -> None:
        self._reader = reader
        self._workers = workers
        self._timeout = timeout
        self._what = what
        self._began = time.monotonic()
        self._grace_ends: float | None = None

    def hangs(self) -> bool:
        """Whether a read is past its deadline."""
        since = self._reader.oldest()
        return since is not None and self._timeout is not None and since + self._timeout <= time.monotonic()

    def left(self) -> float | None:
        """Seconds after which to ask again, unless something happens before; None is never.

        Raises
        ------
        StallError
            A read hangs, or nothing happens; every thread's place is in the message.
        """
        if self._timeout is None:
            return None
        now, since = time.monotonic(), self._reader.oldest()
        left = (max(self._began, self._workers.ended) if since is None else since) + self._timeout - now
        if left > 0:
            self._grace_ends = None
            return left
        # 1. The process is stopped, by Ctrl-Z say, while a read is under way. 2. It goes on an hour later. 3. This
        # thread runs before the one whose read has long come back: so that one is given a moment.
        if self._grace_ends is None:
            self._grace_ends = now + min(_GRACE_SECONDS, self._timeout)
        if now < self._grace_ends:
            return self._grace_ends - now
        raise self._stalled(self._timeout)

    def _stalled(self, timeout: float) -> StallError:
        """Say what the threads are at, and wait for them no more."""
        self._workers.give_up()
        now, reads = time.monotonic(), self._reader.under_way()
        told = ", ".join(f"block {read.block} of {read.field} for {now - read.since:,.1f} s" for read in reads)
        return StallError(
            f"{_hanging(reads[0]) if reads else self._what} within {timeout:g} seconds",
            where=str(reads[0].file if reads else self._reader.path),
            why=f"Where every thread stands:\n{stacks()}\nBeing read: {told or 'nothing'}",
            fix="look at the disk, or wait longer with timeout=",
        )


def _hanging(read: UnderWay) -> str:
    start, stop = read.samples
    return f"block {read.block} of field {read.field} (samples {start} to {stop - 1}) was not read"
