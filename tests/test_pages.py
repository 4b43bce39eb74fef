"""Every page of the repository: links lead somewhere, nothing is said twice, blocks are such as tests run, lengths."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import ALL_PAGES, GUIDE_PAGES, README, ROOT

MAX_LINES = dict.fromkeys(GUIDE_PAGES, 200) | {README: 150, ROOT / "CONTRIBUTING.md": 60}
MIN_WORDS = 9
"""A shorter sentence may stand on two pages."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    """A page without its blocks."""
    return BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The headings of a page as links to them are written."""
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text_of(page))}


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(text_of(page)):
        found = page.parent / target if target else page
        assert found.exists(), target
        assert not heading or heading in anchors(found), f"{target}#{heading}"


@pytest.mark.parametrize("page", MAX_LINES, ids=name_of)
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text().splitlines()) <= MAX_LINES[page]


@pytest.mark.parametrize("page", [README, *GUIDE_PAGES], ids=name_of)
def test_blocks_are_such_as_tests_run(page: Path) -> None:
    for language, body in BLOCK.findall(page.read_text()):
        assert language in ("sh", "python", ""), language
        assert language != "python" or body.startswith(">>> ")
        assert language or "──" in body, "a drawing"


def sentences(page: Path) -> Iterator[str]:
    """What a page says: the sentences of its paragraphs, points and rows, with one space between words."""
    for part in re.split(r"\n\n|\n(?=- |\d+\. |\|)", text_of(page)):
        plain = re.sub(r"\s+", " ", re.sub(r"^(- |\d+\. |#+ )", "", part.strip()))
        yield from re.split(r"(?<=[.:!?]) ", plain)


def test_nothing_is_said_twice() -> None:
    where: defaultdict[str, list[str]] = defaultdict(list)
    for page in ALL_PAGES:
        for sentence in sentences(page):
            if len(re.findall(r"\w+", sentence)) >= MIN_WORDS:
                where[sentence].append(name_of(page))
    assert {sentence: pages for sentence, pages in where.items() if len(pages) > 1} == {}
