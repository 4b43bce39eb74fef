"""The README's picture at a small size: both ways measured, one picture for light and dark pages, nothing left."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from run_script import ROOT, results_of, run_script

PICTURE = ROOT / "streamtrain" / "guide" / "memory.svg"
MAX_BYTES = 60_000


def test_it_measures_and_draws_and_leaves_nothing(tmp_path: Path) -> None:
    data, svg = tmp_path / "data", tmp_path / "memory.svg"
    done = run_script("proofs/picture.py", "--size", "24MB", "--memory", "12MB", "--folder", data, "--svg", svg)
    streamed, loaded = results_of(done)
    assert (streamed["way"], loaded["way"]) == ("streamed", "loaded")
    assert 1_000_000 < streamed["peak_bytes"] <= streamed["budget_bytes"] == 12_000_000
    assert loaded["held_bytes"][-1] > 0.8 * loaded["decoded_bytes"]
    assert streamed["read_bytes"][-1] == loaded["read_bytes"][-1] == streamed["decoded_bytes"]
    assert "budget 12.0 MB" in words(svg)
    assert not list(data.iterdir())


def test_the_picture_of_the_readme_is_small_and_fits_light_and_dark_pages() -> None:
    assert PICTURE.stat().st_size < MAX_BYTES
    assert "prefers-color-scheme: dark" in PICTURE.read_text()
    assert "budget 128.0 MB" in words(PICTURE)
    peak = next(word for word in words(PICTURE) if word.startswith("streamed"))
    assert "128 MB" in (ROOT / "README.md").read_text()
    assert float(peak.split()[-2]) <= 128


def words(svg: Path) -> list[str]:
    return ["".join(text.itertext()) for text in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
