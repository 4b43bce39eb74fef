"""The count of lines: every part of the package, and their sum."""

import json
import subprocess
import sys
from pathlib import Path

from scripts.bench.lines import count

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "bench" / "lines.py"


def test_the_whole_is_the_sum_of_the_parts():
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True)
    *parts, whole = map(json.loads, done.stdout.splitlines())
    assert whole["part"] == "whole"
    for name in ("files", "physical", "code"):
        assert sum(part[name] for part in parts) == whole[name] > 0
    assert {"loader", "store", "errors.py"} <= {part["part"] for part in parts}


def test_docstrings_comments_and_blanks_are_no_code():
    text = 'def f():\n    """What.\n\n    More.\n    """\n    # Why.\n\n    return """a\nb"""\n'
    assert count(text) == (9, 3)
