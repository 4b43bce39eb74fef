"""Files become durable in the background, while the next ones are being written.

A flush waits for the disk and needs no core. Were it done by the thread that wrote the file, then the cores would
idle whenever the disk works. Directories are flushed once, when all files have their names: each such flush makes
the file system commit its journal, and whoever writes waits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from streamtrain.system.files import Files, FileWriter

FLUSHERS: Final = 2
"""Threads that wait for the disk."""

_MOST_WAITING: Final = 4


class Flusher:
    """Finishes written files, a group at a time; an error comes out of the next call that can raise.

    At most a few groups wait: whoever hands over another one then waits for the disk too.

    Parameters
    ----------
    files : Files
        Who flushes the directories.
    root : Path
        The directory that all files are in, at whatever depth; its own name is durable already.
    """

    def __init__(self, files: Files, root: Path) -> None:
        self._files = files
        self._root = root
        self._folders: dict[Path, None] = {}
        self._pool = ThreadPoolExecutor(FLUSHERS, thread_name_prefix="streamtrain-ingest-flush")
        self._room = threading.BoundedSemaphore(FLUSHERS + _MOST_WAITING)
        self._adding = threading.Lock()
        self._flushes: list[Future[None]] = []

    def add(self, files: Sequence[FileWriter], then: Callable[[], None] | None = None) -> None:
        """Take files over, to finish them; the directories above them may be new and not flushed.

        Parameters
        ----------
        then : callable, optional
            Is called when they are durable under their names, short of those of the directories.

        Raises
        ------
        ResourceError
            An earlier one could not be finished.
        """
        self._room.acquire()
        flush = self._pool.submit(self._finish, files, then)
        with self._adding:
            self._flushes.append(flush)
            self._folders.update((folder, None) for file in files for folder in self._above(file.folder))
            done = [flush for flush in self._flushes if flush.done()]
            self._flushes = [flush for flush in self._flushes if flush not in done]
        for flush in done:
            flush.result()

    def cover(self, folder: Path) -> None:
        """Have a directory flushed with the others, and those above it: it holds files that are durable already."""
        with self._adding:
            self._folders.update((above, None) for above in self._above(folder))

    def wait(self) -> None:
        """Return when every file is durable under its name, and so are the directories above it.

        Raises
        ------
        ResourceError
            One of them could not be finished.
        """
        for flush in self._flushes:
            flush.result()
        for _ in self._pool.map(self._files.flush_dir, self._folders):
            pass
        self._flushes.clear()
        self._folders.clear()

    def close(self) -> None:
        """End the threads; what was handed over has been finished, or has failed and is gone."""
        self._pool.shutdown()

    def _above(self, folder: Path) -> Iterator[Path]:
        """A file's directory, and those above it up to the root."""
        yield folder
        for above in folder.parents:
            if not above.is_relative_to(self._root):
                break
            yield above

    def _finish(self, files: Sequence[FileWriter], then: Callable[[], None] | None) -> None:
        try:
            with ExitStack() as unfinished:
                for file in files:
                    unfinished.callback(file.abandon)
                for file in files:
                    file.finish(flush_folder=False)
            if then is not None:
                then()
        finally:
            self._room.release()
