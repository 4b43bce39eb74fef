"""Self-contained HTML pages: style inside, drawings as inline SVG, and no script.

Everything from outside is escaped, and a policy in the page forbids the browser to load or to run anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #222; background: #fff; margin: 24px auto; padding: 0 12px;
  max-width: 1140px; }}
h1 {{ font-size: 17px; margin: 0 0 2px; overflow-wrap: anywhere; }}
h2 {{ font-size: 15px; margin: 24px 0 6px; }}
p {{ margin: 2px 0 10px; }}
pre {{ font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
svg {{ width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: #333; }}
svg text.title {{ font-size: 13px; font-weight: 600; fill: #222; }}
svg text.quiet {{ fill: #555; font-size: 11px; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid #eee; vertical-align: bottom; }}
td:first-child, th:first-child {{ text-align: left; overflow-wrap: anywhere; min-width: 7em; }}
table.facts td {{ text-align: left; vertical-align: top; overflow-wrap: anywhere; }}
table.facts td:first-child {{ color: #555; }}
.wide {{ overflow-x: auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(460px, 100%), 1fr)); gap: 8px 24px; }}
.key {{ display: inline-block; margin: 0 16px 4px 0; white-space: nowrap; }}
.key i {{ display: inline-block; width: 18px; height: 10px; margin-right: 6px; }}
.key i.line {{ height: 0; border-top: 2px; vertical-align: middle; }}
.key svg.sample {{ width: 38px; height: 14px; margin-right: 6px; vertical-align: middle; }}
.note {{ color: #555; }}
</style>
</head>
<body>
"""

Table = tuple[str, Sequence[Sequence[str]]]
"""A heading, and rows of cells; the first row is the head."""


def page(title: str, parts: Iterable[str]) -> str:
    r"""A whole page of parts that are HTML already; what UTF-8 cannot hold stands in it as an escape.

    Examples
    --------
    >>> page("<b>", ["<p>text</p>"]).count("&lt;b&gt;")
    1
    >>> r"<p>d\udcff</p>" in page("", ["<p>d\udcff</p>"])
    True
    """
    text = "\n".join([_HEAD.format(title=escape(title)), *parts, "</body>\n</html>\n"])
    # A file's name may hold bytes that no encoding knows.
    return text.encode(errors="backslashreplace").decode()


def table(heading: str, rows: Sequence[Sequence[str]]) -> str:
    """A table under its heading, every cell escaped; the first row is the head."""
    head, *body = (f"<tr>{_cells(row, 'td' if i else 'th')}</tr>" for i, row in enumerate(rows))
    text = f"<table>\n{head}\n" + "\n".join(body) + "\n</table>"
    return f"<h2>{escape(heading)}</h2>\n{text}" if heading else text


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, in two columns, escaped."""
    rows = "\n".join(f"<tr>{_cells(pair, 'td')}</tr>" for pair in pairs)
    return f'<table class="facts">\n{rows}\n</table>'


def charts(drawings: Iterable[str]) -> str:
    """Drawings side by side, as many as there is room for."""
    return '<div class="charts">' + "\n".join(f"<div>{drawing}</div>" for drawing in drawings) + "</div>"


def note(text: str) -> str:
    """A quiet line of text, escaped."""
    return f'<p class="note">{escape(text)}</p>'


def _cells(row: Sequence[str], tag: str) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)
