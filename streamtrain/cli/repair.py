"""``streamtrain repair DEST``: what interrupted ingests left."""

from __future__ import annotations

from pathlib import Path

import click

from streamtrain.cli.common import emit, json_option
from streamtrain.system.units import format_bytes


@click.command("repair")
@click.argument("dest", metavar="DEST")
@click.option("--remove", is_flag=True, help="Remove what is listed.")
@json_option
def command(dest: str, remove: bool, as_json: bool) -> None:
    """List what interrupted ingests to DEST left: never a file of a dataset that was committed."""
    from streamtrain.store.verify import find_leftovers, remove_leftovers
    from streamtrain.store.writing.staging import actual, state_of
    from streamtrain.system.files import Files

    path = actual(Path(dest))
    found = remove_leftovers(path, Files()) if remove else find_leftovers(path)
    result = {
        "dest": dest,
        "removed": remove,
        "leftovers": [{"path": str(item.path), "what": item.what, "bytes": item.n_bytes} for item in found],
        "dataset": state_of(path) == "committed",
    }
    lines = [f"{item.path}: {item.what} ({format_bytes(item.n_bytes)})" for item in found]
    if not found:
        lines = [f"{dest}: nothing is left of any ingest"]
    else:
        lines.append("removed" if remove else f"streamtrain repair {dest} --remove removes them")
    emit(as_json, result, "\n".join(lines))
