"""Commands as they are declared: options, help and examples, without torch or zarr."""
