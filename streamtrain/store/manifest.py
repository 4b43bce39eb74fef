"""The manifest: every stored file with its length and crc32c, the sources, the layout and the statistics.

It is JSON without duplicate keys, NaN or clocks, so the same data gives the same bytes. The root ``zarr.json`` holds
its SHA-256, and the dataset's id: a digest of the content alone (layout, class names and every block's checksum), the
same wherever and from whatever files it was made.

Nothing in a manifest is believed before it fits the rest: keys are compared with those that the layout implies, so none
can lead outside the dataset; lengths with what the layout's shapes need, so that no small file claims a large array;
and the path to each file must consist of folders, not of links.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from streamtrain.errors import DatasetError
from streamtrain.store import zarr_metadata
from streamtrain.store.byte_ranges import RESTORE, LocalFile, unreadable
from streamtrain.store.codec import HEADER_BYTES, MOST_ENCODABLE_BYTES, header_mismatch
from streamtrain.store.layout import CHECKSUM_BYTES, CODECS, Field, Layout, parse_field
from streamtrain.store.media.encoded import ImageFacts, check_lengths, parse_image_facts
from streamtrain.store.moments import Summary
from streamtrain.store.schema.columns import CategoryColumn
from streamtrain.store.schema.facts import MOST_VOCABULARY_BYTES, StoredFacts, parse_stored_facts, read_vocabulary
from streamtrain.store.schema.task import check_task
from streamtrain.store.shard import ShardReader, StoredFile, check_length, index_bytes, read_stored
from streamtrain.store.statistics import MOST_VALUES, Histogram, LabelFacts, has_facts, settle_summary, stats_shape
from streamtrain.system.arguments import is_int
from streamtrain.system.json_values import number_or_nan, objects, texts, texts_or_none, whole_number
from streamtrain.system.refusals import is_of_machine
from streamtrain.system.syscalls import SYSTEM

FORMAT: Final = 1
AUTO: Final[Literal["auto"]] = "auto"
"""In place of classes: the values of the labels, in order, as of a table's column."""
FORMAT_OF_TABLES: Final = 2
"""That of a dataset whose numbers mean more than an older version knows, which would misread it."""
FORMAT_OF_ENCODED: Final = 3
"""That of a dataset with an encoded field."""
FORMATS: Final = (FORMAT, FORMAT_OF_TABLES, FORMAT_OF_ENCODED)
MOST_MANIFEST_BYTES: Final = 2**28

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSummary:
    """The part of a field's statistics that the manifest itself holds; see `FieldStats`."""

    overall: Summary
    histogram: Histogram | None
    rho: float | None
    facts: LabelFacts | None = None
    images: ImageFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of a committed dataset."""

    id: str  # SHA-256 of the content, hexadecimal
    layout: Layout
    classes: tuple[str, ...] | None  # the names of labels 0, 1, ..., where they were strings
    sources: tuple[Json, ...]
    options: Json
    statistics: Mapping[str, FieldSummary]
    files: Mapping[str, StoredFile]  # by key, without the manifest and the root
    schema: StoredFacts | None = None  # of a table with more than plain columns

    @property
    def format(self) -> int:
        """The number of the format that it is written in."""
        if self.layout.encoded_fields:
            return FORMAT_OF_ENCODED
        return FORMAT if self.schema is None else FORMAT_OF_TABLES


def dataset_id(
    layout: Layout,
    classes: tuple[str, ...] | None,
    checksums: npt.NDArray[np.uint32],
    schema: StoredFacts | None = None,
) -> str:
    """Compute the digest of a dataset's content, and of what it means where a schema says so."""
    meaning = {} if schema is None else {"schema": schema.as_json()}
    digest = hashlib.sha256(dump_json({"layout": layout_json(layout), "classes": classes, **meaning}))
    digest.update(checksums.astype("<u4").tobytes())
    return digest.hexdigest()


def dump_json(value: object) -> bytes:
    """Write JSON of one form: sorted keys, ASCII, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def load_json(data: bytes, *, where: str) -> Json:
    """Read a JSON object, strictly: no key twice, no NaN or infinity."""
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
    """Encode a manifest as it is stored."""
    return dump_json(
        {
            "format": manifest.format,
            **({} if manifest.schema is None else {"schema": manifest.schema.as_json()}),
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
    """Read a manifest back."""
    found = load_json(data, where=where)
    try:
        layout = parse_layout(found["layout"])
        return Manifest(
            id=found["id"],
            layout=layout,
            classes=texts_or_none(found["classes"]),
            sources=objects(found["sources"]),
            options=parse_options(found["options"]),
            statistics={field.name: _parse_summary(found["statistics"][field.name], field) for field in layout.fields},
            files={key: parse_file(pair) for key, pair in found["files"].items()},
            schema=parse_stored_facts(found.get("schema"), layout.fields),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, DatasetError):
            raise
        why = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise DatasetError(f"the manifest does not make sense: {why}", where=where, fix=RESTORE) from error


def layout_json(layout: Layout) -> Json:
    """Turn a layout into what is stored; `parse_layout` reads it back."""
    return {
        "fields": [_field_json(field) for field in layout.fields],
        "n_samples": layout.n_samples,
        "block_rows": layout.block_rows,
        "shard_blocks": layout.shard_blocks,
        "codec": layout.codec,
    }


def _field_json(field: Field) -> Json:
    facts = field.encoded
    encoded = {} if facts is None else {"encoded": {"lengths": facts.lengths, "check": facts.check}}
    return {"name": field.name, "dtype": field.dtype.name, "shape": list(field.shape), **encoded}


def parse_layout(found: Json) -> Layout:
    """Read a layout back; KeyError, TypeError or ValueError where it is not one."""
    fields = tuple(
        parse_field(field["name"], field["dtype"], field["shape"], field.get("encoded"))
        for field in objects(found["fields"])
    )
    check_lengths(fields)
    if not fields or len({field.name for field in fields}) != len(fields) or found["codec"] not in CODECS:
        raise ValueError("its fields or codec are not ones streamtrain stores")
    return Layout(
        fields=fields,
        n_samples=whole_number(found["n_samples"], 1),
        block_rows=whole_number(found["block_rows"], 1),
        shard_blocks=whole_number(found["shard_blocks"], 1),
        codec=found["codec"],
    )


def parse_file(pair: object) -> StoredFile:
    """Read back the length and the checksum of a file; ValueError where they are not ones."""
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"{pair!r:.60} is not the length and the checksum of a file")
    return StoredFile(n_bytes=whole_number(pair[0]), crc32c=whole_number(pair[1], most=2**32 - 1))


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
        "histogram": _histogram_json(histogram),
        # Only of labels whose task does not follow from their histogram; older versions leave it unread.
        **({} if summary.facts is None else {"label": _facts_json(summary.facts)}),
        **({} if summary.images is None else {"images": summary.images.as_json()}),
    }


def _histogram_json(histogram: Histogram | None) -> Json | None:
    if histogram is None:
        return None
    return {"values": histogram.values.tolist(), "counts": histogram.counts.tolist()}


def _facts_json(facts: LabelFacts) -> Json:
    if facts.is_whole is None:
        return {"is_binary": facts.is_binary, "is_one_hot": facts.is_one_hot}
    return {"is_whole": facts.is_whole, "whole": _histogram_json(facts.whole)}


def _parse_summary(found: Json, field: Field) -> FieldSummary:
    mean, std, least, most, rho = (number_or_nan(found[name]) for name in ("mean", "std", "min", "max", "rho"))
    n_nan, n_inf = whole_number(found["n_nan"]), whole_number(found["n_inf"])
    histogram = found["histogram"]
    return FieldSummary(
        overall=settle_summary(Summary(mean=mean, std=std, min=least, max=most, n_nan=n_nan, n_inf=n_inf), field.dtype),
        histogram=None if histogram is None else _parse_histogram(histogram, field),
        rho=None if math.isnan(rho) else rho,
        facts=_parse_facts(found["label"], field) if "label" in found else None,
        images=parse_image_facts(found["images"]) if field.encoded else None,
    )


def _parse_facts(found: Json, field: Field) -> LabelFacts:
    flags = {name: value for name, value in found.items() if name != "whole"}
    names = {"is_whole"} if "whole" in found else {"is_binary", "is_one_hot"}
    if not has_facts(field) or flags.keys() != names or not all(isinstance(value, bool) for value in flags.values()):
        raise ValueError(f"the description of the labels {field.name} makes no sense")
    whole = found.get("whole")
    if whole is None:
        return LabelFacts(**flags)
    as_float = Field(name=field.name, dtype=np.dtype(np.float64), shape=())
    return LabelFacts(**flags, whole=_histogram_of(whole, as_float, is_value=_is_number))


def _is_number(value: object) -> bool:
    return isinstance(value, float)


def _parse_histogram(found: Json, field: Field) -> Histogram:
    if field.shape or field.dtype.kind not in "biu":
        raise ValueError(f"the histogram of {field.name} is not one of whole numbers")
    return _histogram_of(
        found, field, is_value=(lambda value: isinstance(value, bool)) if field.dtype.kind == "b" else is_int
    )


def _histogram_of(found: Json, field: Field, *, is_value: Callable[[object], bool]) -> Histogram:
    values, counts = found["values"], found["counts"]
    if not (_are(values, is_value) and _are(counts, is_int)):
        raise ValueError(f"the histogram of {field.name} is not one of whole numbers")
    histogram = Histogram(values=np.array(values, field.dtype), counts=np.array(counts, np.int64))
    is_ascending = bool((histogram.values[1:] > histogram.values[:-1]).all())
    if not len(values) == len(counts) > 0 or not is_ascending or min(counts) < 1:
        raise ValueError(f"the histogram of {field.name} does not count its samples")
    return histogram


def _are(values: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(values, list) and all(map(is_right, values))


def parse_options(value: object) -> Json:
    """Read back the options of an ingest, of which the classes say what labels mean; ValueError where they cannot."""
    options = objects([value])[0]
    classes = options.get("classes")
    is_listed = isinstance(classes, list) and bool(texts(classes))
    if classes not in (None, AUTO) and not is_listed and not whole_number(classes, 1, MOST_VALUES):
        raise ValueError("no class is named")
    check_task(options.get("task"))
    return options


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


_FIGURES: Final = 6
"""Statistics of each feature, as float64."""
_BELIEVED_RATIO: Final = 100
"""Compression up to which a shard's length alone is enough for its claim; zeros pack better, and so do lies."""


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """Compare the manifest's keys and lengths with its layout, without a look at the files."""
    layout, where = manifest.layout, str(folder / zarr_metadata.MANIFEST)
    # The number is compared first: a layout may claim more shards than there is memory for their names.
    vocabularies = vocabulary_keys(manifest.schema)
    n_expected = layout.n_shards * len(layout.fields) + 3 * len(layout.fields) + 4 + len(vocabularies)
    if len(manifest.files) != n_expected or manifest.files.keys() != _keys(layout) | {*vocabularies.values()}:
        raise DatasetError("the manifest's files are not those of its layout", where=where, fix=RESTORE)
    for key, least, most in _lengths(layout):
        n_bytes = manifest.files[key].n_bytes
        if not least <= n_bytes <= most:
            what = f"the layout claims more or less than {key} holds: {n_bytes:,} bytes"
            why = f"Its shape needs {least:,}" + ("" if least == most else f" to {most:,}")
            raise DatasetError(what, where=where, why=why, fix=RESTORE)
    if any(manifest.files[key].n_bytes > MOST_VOCABULARY_BYTES for key in vocabularies.values()):
        raise DatasetError("a list of categories is too long to be one", where=where, fix=RESTORE)
    for name, summary in manifest.statistics.items():
        counted = summary.histogram or (summary.facts and summary.facts.whole)
        if counted and sum(counted.counts.tolist()) != layout.n_samples:
            raise DatasetError(f"the histogram of {name} does not count its samples", where=where, fix=RESTORE)


def vocabulary_keys(schema: StoredFacts | None) -> dict[int, str]:
    """Name the files of vocabularies, by the number of their column."""
    names = {} if schema is None else schema.vocabulary_names()
    return {number: f"{zarr_metadata.PRIVATE}/{name}" for number, name in names.items()}


def read_categories(folder: Path, manifest: Manifest) -> tuple[CategoryColumn, ...]:
    """Read the names of categories, held against the manifest."""
    if manifest.schema is None:
        return ()
    keys, found = vocabulary_keys(manifest.schema), []
    for number, stored in enumerate(manifest.schema.categories):
        if number not in keys:
            found.append(CategoryColumn(name=stored.name, hash_size=stored.hash_size))
            continue
        key = keys[number]
        try:
            found.append(read_vocabulary(stored, read_stored(folder, key, manifest.files[key])))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            where = str(folder / key)
            raise DatasetError(
                f"the list of categories does not make sense: {error}", where=where, fix=RESTORE
            ) from error
    return tuple(found)


def file_damage(folder: Path, manifest: Manifest) -> Iterator[DatasetError]:
    """List how the files differ from the manifest's: folders, presence, lengths, descriptions, claims."""
    yield from _links(folder, manifest)
    whole: set[str] = set()
    for key, file in manifest.files.items():
        try:
            check_length(f"{folder}/{key}", file)
            whole.add(key)
        except DatasetError as error:
            yield error
    for key in sorted(key for key in whole if key.endswith(zarr_metadata.ROOT)):
        try:
            _check_description(folder, key, manifest)
        except DatasetError as error:
            yield error
    for field in manifest.layout.fields:
        if (key := zarr_metadata.shard_key(field, 0)) in whole:
            try:
                _check_claim(folder / key, field, manifest.layout, manifest.files[key])
            except DatasetError as error:
                yield error


def read_checksums(folder: Path, manifest: Manifest) -> npt.NDArray[np.uint32]:
    """Read the checksum table, shape (n_blocks, n_fields)."""
    key = zarr_metadata.chunk_key(zarr_metadata.CHECKSUMS, 2)
    data = read_stored(folder, key, manifest.files[key])
    return np.frombuffer(data, "<u4").astype(np.uint32).reshape(manifest.layout.n_blocks, len(manifest.layout.fields))


def _keys(layout: Layout) -> set[str]:
    keys = {zarr_metadata.shard_key(field, shard) for field in layout.fields for shard in range(layout.n_shards)}
    keys |= {
        zarr_metadata.metadata_key(name)
        for name in (zarr_metadata.PRIVATE, zarr_metadata.CHECKSUMS, zarr_metadata.STATISTICS)
    }
    keys |= {zarr_metadata.metadata_key(field.name) for field in layout.fields}
    keys.add(zarr_metadata.chunk_key(zarr_metadata.CHECKSUMS, 2))
    keys |= {zarr_metadata.metadata_key(f"{zarr_metadata.STATISTICS}/{field.name}") for field in layout.fields}
    return keys | {_stats_key(field) for field in layout.fields}


def _stats_key(field: Field) -> str:
    return zarr_metadata.chunk_key(f"{zarr_metadata.STATISTICS}/{field.name}", 1 + len(stats_shape(field)))


def _lengths(layout: Layout) -> Iterator[tuple[str, int, int]]:
    """Compute the least and the most bytes that the layout's shapes allow a file, by key."""
    table = 4 * layout.n_blocks * len(layout.fields)
    yield zarr_metadata.chunk_key(zarr_metadata.CHECKSUMS, 2), table, table
    for field in layout.fields:
        n_features = int(np.prod(stats_shape(field), dtype=object))
        yield _stats_key(field), 8 * _FIGURES * n_features, 8 * _FIGURES * n_features
        decoded, codec = layout.block_rows * field.row_bytes, layout.codec_of(field)
        least, most = (decoded, decoded) if codec == "none" else (HEADER_BYTES, decoded + HEADER_BYTES)
        if codec != "none" and decoded > MOST_ENCODABLE_BYTES:
            least = decoded  # which no blosc header can name
        index = index_bytes(layout.shard_blocks)
        for shard in range(layout.n_shards):
            first, end = layout.shard_blocks_range(shard)
            n = end - first
            yield (
                zarr_metadata.shard_key(field, shard),
                n * (least + CHECKSUM_BYTES) + index,
                n * (most + CHECKSUM_BYTES) + index,
            )


def _links(folder: Path, manifest: Manifest) -> Iterator[DatasetError]:
    """List folders on the way to a file that are links, which lead outside the dataset."""
    for way in sorted({parent for key in manifest.files for parent in _parents(key)}):
        try:
            is_folder = stat.S_ISDIR(SYSTEM.stat(f"{folder}/{way}", follow=False).st_mode)
        except OSError as error:
            if is_of_machine(error):
                raise unreadable(f"{folder}/{way}", error) from error
            continue  # its files are missing, which their lengths tell
        if not is_folder:
            yield DatasetError("a link or something else where a folder must be", where=f"{folder}/{way}", fix=RESTORE)


def _parents(key: str) -> Iterator[str]:
    while key := key.rpartition("/")[0]:
        yield key


def _check_description(folder: Path, key: str, manifest: Manifest) -> None:
    """Hold a ``zarr.json`` against its checksum, and that of a field against the layout."""
    found = load_json(read_stored(folder, key, manifest.files[key]), where=str(folder / key))
    for field in manifest.layout.fields:
        if key == zarr_metadata.metadata_key(field.name) and not _describes(found, field, manifest.layout):
            raise DatasetError("the array is not the one in the manifest", where=str(folder / key), fix=RESTORE)


def _describes(found: Json, field: Field, layout: Layout) -> bool:
    """Say whether a ``zarr.json`` describes the field's array."""
    cname = layout.codec_of(field)
    packed = [] if cname == "none" else ["blosc"]
    try:
        sharding = found["codecs"][0]
        codecs = sharding["configuration"]["codecs"]
        return bool(
            len(found["codecs"]) == 1
            and [codec["name"] for codec in codecs] == ["bytes", *packed, "crc32c"]
            and all(codec["configuration"]["cname"] == cname for codec in codecs if codec["name"] == "blosc")
            and found["shape"] == [*zarr_metadata.array_shape(field, layout)]
            and found["data_type"] == field.dtype.name
            and found["chunk_grid"]["configuration"]["chunk_shape"]
            == [*zarr_metadata.chunk_shape(field, layout, layout.shard_blocks)]
            and sharding["name"] == "sharding_indexed"
            and sharding["configuration"]["chunk_shape"] == [*zarr_metadata.chunk_shape(field, layout)]
        )
    except (KeyError, TypeError, IndexError):
        return False


def _check_claim(path: Path, field: Field, layout: Layout, file: StoredFile) -> None:
    """Check the decoded size of a shard's first block where its samples would have to be packed very well."""
    first, end = layout.shard_blocks_range(0)
    decoded = layout.block_rows * field.row_bytes
    if layout.codec_of(field) == "none" or decoded * (end - first) <= _BELIEVED_RATIO * file.n_bytes:
        return
    with ShardReader(LocalFile(path), layout, field, 0) as shard:
        header = shard.fetch(0, memoryview(bytearray(HEADER_BYTES)))
    why = header_mismatch(header, encoded_bytes=shard.span(0)[1], n_bytes=decoded)
    if why:
        what = f"block 0 of field {field.name} is not of the shape that the layout claims"
        raise DatasetError(what, where=str(path), why=why, fix=RESTORE)
