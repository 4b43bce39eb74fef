"""The manifest: every stored file with its length and crc32c, where the data came from, and what is known of it.

It is JSON without duplicate keys, NaN or clocks, so the same data gives the same bytes. The root ``zarr.json``
holds its SHA-256, and the dataset's id: a digest of the content alone (layout, class names and every block's
checksum), the same wherever and from whatever files it was made.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.label_stats import Histogram
from streamtrain.layout import CODECS, Field, Layout
from streamtrain.moments import Summary
from streamtrain.store.stored import RESTORE, StoredFile

FORMAT: Final = 1
MOST_MANIFEST_BYTES: Final = 2**28

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSummary:
    """What the manifest itself says of a field; see `streamtrain.stats.FieldStats`."""

    overall: Summary
    histogram: Histogram | None
    rho: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of a committed dataset.

    Parameters
    ----------
    id : str
        SHA-256 of the content, hexadecimal.
    layout : Layout
        Fields, rows, blocks, shards, codec.
    classes : tuple of str, optional
        The names of labels 0, 1, ..., where they were strings.
    sources : tuple of dict
        What was read.
    options : dict
        How it was asked for.
    statistics : mapping of str to FieldSummary
        By field.
    files : mapping of str to StoredFile
        Every stored key but the manifest's and the root's.
    """

    id: str
    layout: Layout
    classes: tuple[str, ...] | None
    sources: tuple[Json, ...]
    options: Json
    statistics: Mapping[str, FieldSummary]
    files: Mapping[str, StoredFile]


def dataset_id(layout: Layout, classes: tuple[str, ...] | None, checksums: npt.NDArray[np.uint32]) -> str:
    """The digest of a dataset's content.

    Parameters
    ----------
    layout, classes
        As in `Manifest`.
    checksums : ndarray of uint32, shape (n_blocks, n_fields)
        The crc32c of every encoded block.

    Examples
    --------
    >>> y = Field(name="y", dtype=np.dtype("int64"), shape=())
    >>> layout = Layout(fields=(y,), n_samples=2, block_rows=1, shard_blocks=2, codec="none")
    >>> dataset_id(layout, None, np.zeros((2, 1), np.uint32))[:16]
    '40850e081a3771d8'
    """
    digest = hashlib.sha256(dump_json({"layout": layout_json(layout), "classes": classes}))
    digest.update(checksums.astype("<u4").tobytes())
    return digest.hexdigest()


def dump_json(value: object) -> bytes:
    """Write JSON of one form: sorted keys, ASCII, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_json(data: bytes, *, where: str) -> Json:
    """Read a JSON object, strictly.

    Raises
    ------
    DatasetError
        Not JSON, not an object, a key twice, or NaN or infinity as a number.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"is not what streamtrain wrote: {error}", where=where, fix=RESTORE) from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_constant(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def dump_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is stored."""
    return dump_json(
        {
            "format": FORMAT,
            "id": manifest.id,
            "layout": layout_json(manifest.layout),
            "classes": manifest.classes,
            "sources": manifest.sources,
            "options": manifest.options,
            "statistics": {name: _summary_json(summary) for name, summary in manifest.statistics.items()},
            "files": {key: [file.n_bytes, file.crc32c] for key, file in manifest.files.items()},
        }
    )


def parse_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest back.

    Raises
    ------
    DatasetError
        Something in it is missing, or is of another kind than it must be.
    """
    found = load_json(data, where=where)
    try:
        layout = parse_layout(found["layout"])
        classes = found["classes"]
        return Manifest(
            id=str(found["id"]),
            layout=layout,
            classes=None if classes is None else tuple(str(name) for name in classes),
            sources=tuple(dict(source) for source in found["sources"]),
            options=dict(found["options"]),
            statistics={
                field.name: _parse_summary(found["statistics"][field.name], field.dtype) for field in layout.fields
            },
            files={key: StoredFile(n_bytes=int(n), crc32c=int(crc)) for key, (n, crc) in found["files"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SyntaxError) as error:
        if isinstance(error, DatasetError):
            raise
        why = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"the manifest does not make sense: {why}", where=where, fix=RESTORE) from error


def layout_json(layout: Layout) -> Json:
    """A layout as it is stored; `parse_layout` reads it back."""
    return {
        "fields": [{"name": f.name, "dtype": f.dtype.name, "shape": list(f.shape)} for f in layout.fields],
        "n_samples": layout.n_samples,
        "block_rows": layout.block_rows,
        "shard_blocks": layout.shard_blocks,
        "codec": layout.codec,
    }


def parse_layout(found: Json) -> Layout:
    """Read a layout back.

    Raises
    ------
    KeyError, TypeError, ValueError
        It is not one.
    """
    fields = tuple(
        Field(name=field["name"], dtype=np.dtype(field["dtype"]), shape=tuple(_positive(n) for n in field["shape"]))
        for field in found["fields"]
    )
    names = {field.name for field in fields}
    kinds = {field.dtype.kind for field in fields}
    if not fields or len(names) != len(fields) or not kinds <= set("biuf") or found["codec"] not in CODECS:
        raise ValueError("its fields or codec are not ones streamtrain stores")
    return Layout(
        fields=fields,
        n_samples=_positive(found["n_samples"]),
        block_rows=_positive(found["block_rows"]),
        shard_blocks=_positive(found["shard_blocks"]),
        codec=found["codec"],
    )


def _positive(n: object) -> int:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"{n!r} is not a positive integer")
    return n


def _summary_json(summary: FieldSummary) -> Json:
    overall, histogram = summary.overall, summary.histogram
    return {
        "mean": _number(overall.mean),
        "std": _number(overall.std),
        "min": _number(overall.min),
        "max": _number(overall.max),
        "n_nan": overall.n_nan,
        "n_inf": overall.n_inf,
        "rho": summary.rho,
        "histogram": histogram and {"values": histogram.values.tolist(), "counts": histogram.counts.tolist()},
    }


def _parse_summary(found: Json, dtype: np.dtype[Any]) -> FieldSummary:
    figures = {name: math.nan if found[name] is None else float(found[name]) for name in ("mean", "std", "min", "max")}
    histogram = found["histogram"]
    return FieldSummary(
        overall=Summary(**figures, n_nan=int(found["n_nan"]), n_inf=int(found["n_inf"])),
        histogram=histogram
        and Histogram(values=np.array(histogram["values"], dtype), counts=np.array(histogram["counts"], np.int64)),
        rho=None if found["rho"] is None else float(found["rho"]),
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
