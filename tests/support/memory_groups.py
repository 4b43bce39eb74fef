"""Control groups in tests: whether this machine lets one limit memory."""

from __future__ import annotations

from scripts.proofs import cgroup


def can_limit(limit_bytes: int) -> bool:
    """Whether a group with a limit can be made here."""
    try:
        with cgroup.memory_group(limit_bytes):
            return True
    except cgroup.NoGroup:
        return False
