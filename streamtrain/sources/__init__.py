"""Raw formats, one file each, behind one small protocol.

`open_source` takes whatever the user gives (paths, arrays, iterators, labels beside them) and gives a `Source`:
fields, a row count, and bounded runs of rows in order. No file format here can make code run, and none needs the
data to fit in memory.
"""

from streamtrain.sources.classified import Classes, with_classes
from streamtrain.sources.inputs import changed
from streamtrain.sources.protocol import (
    ChunkedSource,
    Probe,
    Rows,
    SeekableSource,
    Source,
    SourceOptions,
    chunk_bytes_of,
)
from streamtrain.sources.registry import open_source

__all__ = [
    "ChunkedSource",
    "Classes",
    "Probe",
    "Rows",
    "SeekableSource",
    "Source",
    "SourceOptions",
    "changed",
    "chunk_bytes_of",
    "open_source",
    "with_classes",
]
