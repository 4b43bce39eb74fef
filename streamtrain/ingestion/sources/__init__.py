"""Raw formats, one file each, behind one small protocol.

`open_source` takes whatever the user gives (paths, arrays, iterators, labels beside them) and gives a `Source`:
fields, a row count, and bounded runs of rows in order. No file format here can make code run, and none needs the
data to fit in memory.
"""
