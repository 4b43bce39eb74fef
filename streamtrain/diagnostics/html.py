"""Self-contained HTML pages: style inside, drawings as inline SVG, and no script, on white or, where asked, dark.

The template escapes everything from outside, and a policy in the page forbids the browser to load or to run anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from streamtrain.diagnostics.charts import THEME, Drawing

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""
_UNDRAWN: Final = "pip install streamtrain[plot] draws the charts."


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareMatrix:
    """A table of shares, each with the text that it is explained by; the first name of the head is of the rows."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSection:
    """A part of a page; what it has none of is left out."""

    heading: str = ""
    # To be copied as they are.
    lines: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    # Further facts, shown when their title is clicked.
    folded: Sequence[tuple[str, str]] = ()
    folded_as: str = ""
    drawings: Sequence[Drawing] = ()
    table: Table = ()
    matrix: ShareMatrix | None = None
    notes: Sequence[str] = ()


def page(title: str, heading: str, sections: Sequence[PageSection]) -> str:
    r"""Write a whole page; what UTF-8 cannot hold stands in it as an escape.

    Examples
    --------
    >>> r"<h1>&lt;b&gt;\udcff</h1>" in page("", "<b>\udcff", [])
    True
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawings = [drawing for section in sections for drawing in section.drawings]
    note = "" if all(drawing.svg for drawing in drawings) else _UNDRAWN
    given = {"title": title, "heading": heading, "sections": sections, "note": note, "theme": THEME}
    text = templates.get_template("page.html").render(**given)
    # A file's name may hold bytes that no encoding knows.
    return text.encode(errors="backslashreplace").decode() + "\n"
