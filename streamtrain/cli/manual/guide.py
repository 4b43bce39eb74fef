"""``streamtrain guide [PAGE]``: the pages of the guide, which are part of the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from streamtrain.cli.commands.sections import command
from streamtrain.cli.commands.values import ValueType
from streamtrain.cli.output import emit, json_option, print_text
from streamtrain.errors import Lines, unknown_name

_FOLDER: Final = Path(__file__).parents[2] / "guide"
_WIDTH: Final = 54
_FIRST: Final = (
    *("concepts", "commands", "ingest", "tables", "images", "arrays", "splits"),
    *("train", "update-rules", "resume", "predict"),
)


def guide_pages() -> dict[str, Path]:
    """Find the pages by name, those of a first week first."""
    names = sorted(path.stem for path in _FOLDER.glob("*.md"))
    ordered = sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return {name: _FOLDER / f"{name}.md" for name in ordered}


class _Page(ValueType):
    """The name of a page."""

    name = "PAGE"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the names of the pages."""
        return [
            CompletionItem(name, help=_contents(path)) for name, path in guide_pages().items() if _has(name, incomplete)
        ]


def _has(name: str, start: str) -> bool:
    return name.startswith(start)


def _contents(path: Path) -> str:
    """List the headings of a page, as many as fit in a line."""
    headings = re.findall(r"^## (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    lines = ("; ".join([*headings[:n], *(["..."] if n < len(headings) else [])]) for n in range(len(headings), 0, -1))
    return next((line for line in lines if len(line) <= _WIDTH), "")


@command(
    "guide",
    examples=("streamtrain guide", "streamtrain guide tables"),
    page="commands",
)
@click.argument("page", type=_Page(), required=False)
@json_option
def guide_command(page: str | None, as_json: bool) -> None:
    """Show the page PAGE of the guide; without a name, list the pages.

    On a terminal the page is shown in your pager ($PAGER); q leaves it.
    """
    pages = guide_pages()
    if page is None:
        contents = {name: _contents(path) for name, path in pages.items()}
        width = max(map(len, contents), default=0)
        emit(as_json, {"pages": contents}, Lines.of(f"{name:<{width}}  {line}" for name, line in contents.items()))
        return
    name = page.removesuffix(".md")
    if name not in pages:
        raise unknown_name("page", page, pages)
    text = pages[name].read_text(encoding="utf-8")
    if as_json:
        emit(as_json, {"page": name, "text": text}, "")
    elif _is_terminal():
        click.echo_via_pager(text)
    else:
        print_text(Lines(text.rstrip("\n")))


def _is_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
