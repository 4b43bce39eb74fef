"""The table of the first hour, on tiny data."""

from __future__ import annotations

import os

from run_script import results_of, run_script

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def test_the_tasks_come_out_within_their_commands() -> None:
    done = run_script(
        "first_hour.py", "--size", "tiny", "--in-process", "--rows", 1, 2, 3, 4, 8, 9, 13, 15, env=ONE_THREAD
    )
    results = results_of(done)
    assert [result["row"] for result in results] == [1, 2, 3, 4, 8, 9, 13, 15]
    assert all(result["met"] and check["met"] for result in results for check in result["checks"])
    assert done.stderr.endswith("8 of 8 rows met\n")
