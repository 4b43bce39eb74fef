"""The site of the pages: it lists every page, and its versions are pinned."""

from __future__ import annotations

import re
import subprocess

from pages import ALL_PAGES, ROOT
from run_script import SCRIPTS

SITE = SCRIPTS / "docs_site"


def test_the_site_lists_every_page() -> None:
    listed = re.findall(r"([\w/-]+\.md)$", (SITE / "mkdocs.yml").read_text(), flags=re.M)
    assert sorted(listed) == sorted(str(page.relative_to(ROOT)) for page in ALL_PAGES)


def test_its_versions_are_pinned_and_nothing_is_fetched() -> None:
    lines = (SITE / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert {"mkdocs", "mkdocs-material"} <= {line.partition("==")[0] for line in lines}
    assert "font: false" in (SITE / "mkdocs.yml").read_text()


def test_an_option_is_refused() -> None:
    done = subprocess.run([SCRIPTS / "docs", "--serve"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "usage: scripts/docs [FOLDER]\n")
