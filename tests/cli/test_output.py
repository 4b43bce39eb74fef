"""The lines that several commands print."""

from __future__ import annotations

from streamtrain.cli.output import epoch_head, memory_line, time_lines
from streamtrain.system.events import ThreadSeconds
from streamtrain.training.metrics import Speed


def test_lines_for_people() -> None:
    assert epoch_head("accuracy", with_val=False) == "epoch      steps        loss    accuracy   samples/s   stall"
    memory = {"budget": 16_000_000, "projected": 15_200_000, "measured": 12_345_678}
    assert memory_line(memory) == "memory  budget 16.0 MB, projected 15.2 MB, measured 12.3 MB"
    work = ThreadSeconds(disk=0.5, decode=0.25, gather=1.0, index=0.25)
    assert time_lines(Speed(n_samples=9, seconds=4.0, wait_seconds=0.1, work=work)) == [
        "time    4.0 s: compute 97.5%, transfer 0.0%, wait 2.5%",
        "threads 2.0 s of work: disk 25%, decode 12%, gather 50%, index 12%",
    ]
