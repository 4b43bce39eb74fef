"""Raw formats, behind one base class.

`streamtrain.ingestion.sources.registry.open_source` takes paths, arrays or iterators, with labels beside them, and
gives a `Source`: fields, a row count, and bounded runs of rows in order. No file format here can make code run, and
none needs the data to fit in memory.
"""
