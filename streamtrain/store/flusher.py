"""Files become durable in the background, while the next ones are being written.

A flush waits for the disk and needs no core. Were it done by the thread that wrote the file, then the cores would
idle whenever the disk works. Directories are flushed once, when all files have their names: each such flush makes
the file system commit its journal, and whoever writes waits for that.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from streamtrain.files import Files, FileWriter

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
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._folders: dict[Path, None] = {}
        self._pool = ThreadPoolExecutor(FLUSHERS, thread_name_prefix="streamtrain-ingest-flush")
        self._room = threading.BoundedSemaphore(FLUSHERS + _MOST_WAITING)
        self._adding = threading.Lock()
        self._flushes: list[Future[None]] = []

    def add(self, files: Sequence[FileWriter]) -> None:
        """Take files over, to finish them.

        Raises
        ------
        ResourceError
            An earlier one could not be finished.
        """
        self._room.acquire()
        flush = self._pool.submit(self._finish, files)
        with self._adding:
            self._flushes.append(flush)
            self._folders.update((file.folder, None) for file in files)
            done = [flush for flush in self._flushes if flush.done()]
            self._flushes = [flush for flush in self._flushes if flush not in done]
        for flush in done:
            flush.result()

    def wait(self) -> None:
        """Return when every file is durable under its name.

        Raises
        ------
        ResourceError
            One of them could not be finished.
        """
        for flush in self._flushes:
            flush.result()
        for folder in self._folders:
            self._files.flush_dir(folder)
        self._flushes.clear()
        self._folders.clear()

    def close(self) -> None:
        """End the threads; what was handed over has been finished, or has failed and is gone."""
        self._pool.shutdown()

    def _finish(self, files: Sequence[FileWriter]) -> None:
        try:
            with ExitStack() as unfinished:
                for file in files:
                    unfinished.callback(file.abandon)
                for file in files:
                    file.finish(flush_folder=False)
        finally:
            self._room.release()
