"""Hierarchies of named arrays, HDF5 and Zarr alike: which become fields, and how their chunks become rows."""
