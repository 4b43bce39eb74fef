"""What ``train`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from streamtrain.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command, as given; `streamtrain train --help` tells what they mean."""

    dest: Path
    model: str
    val: Path | None
    loss: str | None
    update: str
    optimizer: str
    lr: float | None
    momentum: float | None
    betas: tuple[float, ...] | None
    eps: float | None
    weight_decay: float | None
    nesterov: bool
    epochs: int
    max_steps: int | None
    batch_size: int
    memory: str | None
    max_memory: str | None
    lanes: int | None
    drop_last: bool
    on_bad_block: str
    seed: int
    device: str
    normalize: str
    threads: int | None
    out: Path | None
    checkpoint_every: int | None
    on_checkpoint_failure: str
    resume: bool
    log_every: int
    headspace: bool


def parse_betas(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Read the two numbers of ``--betas``.

    Raises
    ------
    UsageError
        They are no numbers.
    """
    if value is None:
        return None
    try:
        return tuple(float(word) for word in value.split(","))
    except ValueError:
        raise UsageError(f"betas {value!r} are not numbers", fix="--betas 0.9,0.999, say") from None
