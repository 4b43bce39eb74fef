"""Help in sections: options by what they are about, examples, and the page of the guide."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import click

_ALL: Final = "streamtrain.help_all"
_REST: Final = "Options"
_COLUMN: Final = 26


class Option(click.Option):
    """An option with the section of the help that it is in."""

    def __init__(self, *args: Any, section: str | None = None, **of_click: Any) -> None:
        super().__init__(*args, **of_click)
        self.section = section

    def make_metavar(self, ctx: click.Context | None = None) -> str:
        """Write a number as N or X: what is wide leaves less room for the help."""
        if self.metavar is None and (letter := _NUMBERS.get(self.type)) is not None:
            return letter
        return super().make_metavar(*([ctx] if ctx else []))


_NUMBERS: Final[dict[object, str]] = {click.INT: "N", click.FLOAT: "X"}

option = partial(click.option, cls=Option)


class _Formatter(click.HelpFormatter):
    """Headings in bold, on a terminal."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, f"{click.style('Usage:', bold=True)} ")

    def write_heading(self, heading: str) -> None:
        self.write(f"{'':>{self.current_indent}}{click.style(f'{heading}:', bold=True)}\n")


class Context(click.Context):
    """A context whose help has its headings in bold."""

    formatter_class = _Formatter


def _show_all(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        context.meta[_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


class Command(click.Command):
    """A command whose help has sections, examples and a page of the guide.

    ``first`` are the sections that ``--help`` shows, in their order, where it does not show all; ``--help-all`` does.
    """

    context_class = Context

    def __init__(
        self, *args: Any, first: Sequence[str] = (), examples: Sequence[str] = (), page: str = "", **of_click: Any
    ) -> None:
        super().__init__(*args, **of_click)
        self.first, self.examples, self.page = tuple(first), tuple(examples), page
        n_more = sum(getattr(each, "section", None) not in (*first, None) for each in self.params)
        # Not listed where --help shows all as well.
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                hidden=not (first and n_more),
                callback=_show_all,
                help=f"Show {n_more} more options, too, and exit.",
            )
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Draw the options, section by section; those of no section are last."""
        rows: dict[str, list[tuple[str, str]]] = {name: [] for name in self.first}
        for parameter in sorted(self.get_params(ctx), key=_is_in_none):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows.setdefault(getattr(parameter, "section", None) or _REST, []).append(record)
        shown = [*self.first, _REST] if self.first and _ALL not in ctx.meta else list(rows)
        for name in shown:
            if rows.get(name):
                with formatter.section(name):
                    formatter.write_dl(rows[name], col_max=_COLUMN)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Draw the examples, and name the page of the guide."""
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(_indented(line, formatter) + "\n")
        if self.page:
            formatter.write_paragraph()
            formatter.write_text(f"More about it: streamtrain guide {self.page}")


def _indented(line: str, formatter: click.HelpFormatter) -> str:
    """Indent an example, continued as a shell takes it where it is too wide."""
    indent = " " * formatter.current_indent
    wrapped = textwrap.TextWrapper(
        width=formatter.width - len(" \\"),
        initial_indent=indent,
        subsequent_indent=indent * 3,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(wrapped.wrap(line))


def _is_in_none(parameter: click.Parameter) -> bool:
    return getattr(parameter, "section", None) is None


def names_of(command: click.Command) -> Iterator[str]:
    """Yield the long options of a command, those that its help shows first before the rest."""
    first = getattr(command, "first", ())
    for parameter in sorted(command.params, key=lambda each: getattr(each, "section", None) not in (*first, None)):
        if isinstance(parameter, click.Option) and not parameter.hidden:
            yield from (name for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("--"))


command = partial(click.command, cls=Command)
