"""The page of the guide on other trainers: its Python runs, in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from engine_runs import call_named, run


def follow_page() -> int:
    from pages import ENGINES, GUIDE, follow

    # By this they tell that a launcher started them; FSDP2 alone wants the rest of what it says.
    del os.environ["LOCAL_RANK"]
    follow(GUIDE / "concepts.md")
    return follow(ENGINES)


def test_the_page_on_other_trainers_runs(tmp_path: Path) -> None:
    assert run(follow_page, 1, tmp_path)[0] > 20


if __name__ == "__main__":
    call_named(globals())
