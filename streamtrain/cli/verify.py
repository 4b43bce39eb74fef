"""``streamtrain verify DEST``: whether a dataset is what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from streamtrain.cli.common import emit, json_option
from streamtrain.errors import DamagedBlock, DatasetError
from streamtrain.system.units import format_bytes, format_duration

if TYPE_CHECKING:
    from streamtrain.store.verify import Verified


@click.command("verify")
@click.argument("dest", metavar="DEST")
@click.option("--full", is_flag=True, help="Read every block, too, and hold it against its checksum.")
@json_option
def command(dest: str, full: bool, as_json: bool) -> None:
    """Hold the dataset at DEST against its manifest, and list all damage; with any, the exit code is 4.

    Lengths and metadata are looked at by default; --full reads every stored byte.
    """
    from streamtrain.store.verify import verify

    with _progress(full=full) as bar:

        def tell(n_bytes: int, total: int) -> None:
            bar.total = total
            bar.update(n_bytes)

        verified = verify(dest, full=full, tell=tell)
    emit(as_json, _result(dest, verified), _text(dest, verified))
    if verified.damage:
        raise click.exceptions.Exit(DatasetError.exit_code)


def _progress(*, full: bool) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # generic in its stub only
        # tqdm would start a thread that outlives the bar, to redraw one that has stalled.
        monitor_interval = 0

    # Shown where stderr is a terminal.
    return Bar(desc="verify", unit="B", unit_scale=True, disable=None if full else True, leave=False)


def _result(dest: str, verified: Verified) -> dict[str, Any]:
    layout = verified.manifest.layout
    return {
        "dataset": dest,
        "id": verified.manifest.id,
        "full": verified.full,
        "files": len(verified.manifest.files),
        "blocks": layout.n_blocks * len(layout.fields) if verified.full else 0,
        "bytes": verified.n_bytes,
        "seconds": round(verified.seconds, 3),
        "damage": [_one(error) for error in verified.damage],
    }


def _one(error: DatasetError) -> dict[str, Any]:
    found: dict[str, Any] = {"file": error.where, "what": error.what, "why": error.why, "fix": error.fix}
    if isinstance(error, DamagedBlock):
        start, stop = error.samples
        found |= {"field": error.field, "block": error.block, "first_sample": start, "last_sample": stop - 1}
    return found


def _text(dest: str, verified: Verified) -> str:
    looked = f"{len(verified.manifest.files):,} files, {format_duration(verified.seconds)}"
    if verified.full:
        rate = f"{format_bytes(verified.bytes_per_second)}/s"
        looked = f"{format_bytes(verified.n_bytes)} of blocks read and checked at {rate}; {looked}"
    else:
        looked = f"lengths and metadata; blocks are read with --full; {looked}"
    if not verified.damage:
        return f"{dest}: whole ({looked})"
    n = len(verified.damage)
    head = f"{dest}: {n:,} {'place is' if n == 1 else 'places are'} damaged ({looked})"
    return "\n".join([head, *(f"  {error}" for error in verified.damage)])
