"""``streamtrain report RUN``: what a run was and how it went, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from streamtrain.cli.common import emit, json_option

_path = click.Path(path_type=Path)


@click.command("report")
@click.argument("run", type=_path)
@click.option("--dataset", type=_path, help="The run's training data, where it lies elsewhere than it did.")
@click.option("--out", type=_path, help="The file; by default report.html in the run's folder.")
@json_option
def command(run: Path, dataset: Path | None, out: Path | None, as_json: bool) -> None:
    """Write the report of the folder RUN: one HTML file that needs nothing else.

    Configuration, curves, memory against budget, where the time went, how well the data was shuffled, and its
    statistics. What is of the dataset is left out, with the reason, where the dataset is gone.
    """
    from streamtrain.diagnostics.run_report import write_report

    file, told = write_report(run, dataset=dataset, out=out)
    last = told.epochs[-1] if told.epochs else {}
    result = {"report": file, "run": run, "epochs": len(told.epochs), "last": last}
    emit(as_json, result, f"report  {file}")
