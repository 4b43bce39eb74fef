"""Plain HTML for notebooks: tables and bars, everything in them escaped, in the colors around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from streamtrain.errors import printable

_MOST_ROWS: Final = 20
_MOST_LETTERS: Final = 40
_TABLE: Final = '<table cellpadding="4">'
# Of no theme: half of it shows through, so that it can be seen in either.
_BAR: Final = "background:rgba(80,140,200,.6);height:.8em;min-width:1px;width:"


def clipped(text: str, most: int = _MOST_LETTERS) -> str:
    """Cut a long text short at its end, in letters that a screen can show.

    Examples
    --------
    >>> clipped("shoulder", most=6)
    'shoul…'
    """
    shown = printable(text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def clipped_left(text: str, most: int) -> str:
    """Cut a long path short at its beginning: folders differ at their ends.

    Examples
    --------
    >>> clipped_left("/data/of/years/flights", most=12)
    '…ars/flights'
    """
    shown = printable(text)
    return shown if len(shown) <= most else f"…{shown[len(shown) - max(most - 1, 0) :]}"


def html_table(rows: Sequence[Sequence[str]], *, marked: int | None = None, first: int = _MOST_ROWS) -> str:
    """Write rows below a head, one of them ``marked``, as a table that is cut after ``first``.

    Examples
    --------
    >>> "<td" in html_table([["a"], ["<b>"]]), "&lt;b&gt;" in html_table([["a"], ["<b>"]])
    (True, True)
    """
    head, *body = rows
    lines = [_row("th", head), *(_row("td", row, is_bold=i == marked) for i, row in enumerate(body[:first]))]
    return f"{_TABLE}{''.join(lines)}</table>{_more(len(body) - first)}"


def _row(tag: str, cells: Sequence[str], *, is_bold: bool = False) -> str:
    texts = [escape(clipped(cell)) for cell in cells]
    texts = [f"<b>{text}</b>" for text in texts] if is_bold else texts
    sides = ["left", *["right"] * (len(cells) - 1)]
    written = (f'<{tag} align="{side}">{text}</{tag}>' for text, side in zip(texts, sides, strict=True))
    return f"<tr>{''.join(written)}</tr>"


def _more(n: int) -> str:
    return f"<div>… and {n:,} more</div>" if n > 0 else ""


def html_bars(counts: Mapping[str, int]) -> str:
    """Write counts by name as bars in a table."""
    most = max(counts.values(), default=0) or 1
    rows = [
        f'<tr><td align="left">{escape(clipped(name))}</td><td align="right">{count:,}</td>'
        f'<td align="left" style="width:12em"><div style="{_BAR}{100 * count / most:.0f}%"></div></td></tr>'
        for name, count in list(counts.items())[:_MOST_ROWS]
    ]
    return f"{_TABLE}{''.join(rows)}</table>{_more(len(counts) - _MOST_ROWS)}"


def html_title(text: str) -> str:
    """Write the line above the tables."""
    return f"<div><strong>{escape(clipped(text, 200))}</strong></div>"


def html_facts(facts: Sequence[Sequence[str]]) -> str:
    """Write names and what they are as a table without a head."""
    rows = (
        f'<tr><td align="left">{escape(clipped(name))}</td><td align="left">{escape(clipped(value, 400))}</td></tr>'
        for name, value in facts
    )
    return f"{_TABLE}{''.join(rows)}</table>"
