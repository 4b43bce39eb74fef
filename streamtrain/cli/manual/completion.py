"""``streamtrain completion SHELL``: the script by which a shell completes commands, options and names."""

from __future__ import annotations

import subprocess
from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class, shell_complete

from streamtrain.cli.commands.sections import command
from streamtrain.cli.commands.values import COMPLETION, Choice
from streamtrain.cli.output import emit, json_option
from streamtrain.errors import Lines, UsageError

_PROGRAM: Final = "streamtrain"
_LEAST_BASH: Final = (4, 4)
_INSTALLED: Final = {
    "bash": 'Add this line to ~/.bashrc:  eval "$(streamtrain completion bash)"',
    "zsh": 'Add this line to ~/.zshrc, below compinit:  eval "$(streamtrain completion zsh)"',
    "fish": "Run this once:  mkdir -p ~/.config/fish/completions; "
    "streamtrain completion fish > ~/.config/fish/completions/streamtrain.fish",
}


def answer(group: click.Command, instruction: str) -> int:
    """Print the completions that a shell's script asks for."""
    return shell_complete(group, {}, _PROGRAM, COMPLETION, instruction)


@command(
    "completion",
    examples=("streamtrain completion bash", "streamtrain completion zsh", "streamtrain completion fish"),
    page="commands",
)
@click.argument("shell", type=Choice(tuple(_INSTALLED)))
@json_option
def completion_command(shell: str, as_json: bool) -> None:
    """Print the script that completes commands, options and names in SHELL: bash (4.4 or newer), zsh or fish.

    The comment at its top says how to install it, in one line.
    """
    if shell == "bash":
        _check_bash()
    made = get_completion_class(shell)
    assert made is not None
    # Of the base class: that of bash starts a shell to warn of its version, which is refused here.
    script = ShellComplete.source(made(click.get_current_context().find_root().command, {}, _PROGRAM, COMPLETION))
    text = f"# {_INSTALLED[shell]}\n{script.rstrip()}"
    emit(as_json, {"shell": shell, "script": text}, Lines(text))


def _check_bash() -> None:
    """Refuse a bash that cannot keep completions in their order; one that is not there is not judged."""
    try:
        told = subprocess.run(
            ["bash", "--norc", "-c", "echo $BASH_VERSION"], capture_output=True, text=True, check=False
        )
    except OSError:
        return
    numbers = told.stdout.split(".")[:2]
    if len(numbers) == 2 and all(map(str.isdecimal, numbers)) and tuple(map(int, numbers)) < _LEAST_BASH:
        raise UsageError(
            f"bash is {told.stdout.strip()}; completion needs 4.4 or newer",
            why="An older one cannot keep the suggestions in order",
            fix="install a newer bash, or use zsh or fish",
        )
