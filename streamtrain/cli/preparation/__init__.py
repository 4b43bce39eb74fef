"""Checks and looks before the first step of a training: raw files, cores that are free, a dry run."""
