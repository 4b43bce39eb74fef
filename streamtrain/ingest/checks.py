"""What was read, held against what the source promised, when all of it has been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from streamtrain.errors import InputError
from streamtrain.ingest.shards import Tallies
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.sources.input_files import changed
from streamtrain.store.statistics import FieldStats

_ROWS_SHOWN: Final = 3


def checked_statistics(
    source: Source, provenance: tuple[dict[str, Any], ...], tallies: Tallies, n_samples: int
) -> Mapping[str, FieldStats]:
    """The statistics, if what was read can be trusted and trained on.

    Parameters
    ----------
    source : Source
        What was read.
    provenance : tuple of dict
        Of the files that must still be what they were.
    tallies : tuple of FieldTally
        Of all rows.
    n_samples : int
        How many there were.

    Raises
    ------
    InputError
        A file changed, rows are missing, or values are NaN or infinite.
    """
    change = changed(provenance)
    if change:
        raise InputError(change, fix="ingest again when nothing writes to it")
    if n_samples == 0:
        raise InputError("there are no samples", fix="give at least one row")
    if source.n_samples is not None and source.n_samples != n_samples:
        raise InputError(f"the source promised {source.n_samples} rows and gave {n_samples}", fix="check the source")
    statistics = {tally.field.name: tally.finish() for tally in tallies}
    for tally in tallies:
        _check_finite(source, tally.field.name, statistics[tally.field.name], tally.nonfinite_rows)
    return statistics


def _check_finite(source: Source, name: str, stats: FieldStats, rows: tuple[int, ...]) -> None:
    n_nan, n_inf = stats.overall.n_nan, stats.overall.n_inf
    if n_nan or n_inf:
        counts = [f"{n:,} {kind}" for n, kind in ((n_nan, "NaN"), (n_inf, "infinite")) if n]
        raise InputError(
            f"field {name} holds {' and '.join(counts)} value{'s' * (n_nan + n_inf > 1)}",
            where=source.where(rows[0]),
            why=f"The first are at {', '.join(source.where(row) for row in rows[:_ROWS_SHOWN])}",
            fix="remove those rows, or fill them in; they are never replaced silently",
        )
