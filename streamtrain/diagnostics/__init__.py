"""Explanations of a machine or a run: doctor, profile, headspace, and the report of a run.

Reports are files that need nothing else. Names and values come from folders that anyone may have made; all of them are
escaped, and nothing is executed.
"""
