"""A dry run of an ingest: what it finds and would write, from headers and first passes; nothing is written."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from streamtrain.ingestion.cluster.portable import as_given, portable
from streamtrain.ingestion.ingest import begin, given_to, ingest, parse_mode
from streamtrain.ingestion.opening import Given
from streamtrain.ingestion.request import IngestRequest, check_option_names, parse_request, sizes_for_request
from streamtrain.ingestion.resume import Say
from streamtrain.ingestion.row_stream import RowStream
from streamtrain.ingestion.sources.base import Source
from streamtrain.ingestion.splits.rule import parse_split
from streamtrain.store.dataset import Dataset
from streamtrain.store.layout import ENCODED_CODEC, Field, Layout, plan_layout
from streamtrain.store.split_root import SplitRule


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundData:
    """What an ingest finds."""

    fields: tuple[Field, ...]
    own_fields: tuple[Field, ...]  # without the lengths of images
    n_samples: int | None  # None where only reading tells
    sources: tuple[dict[str, Any], ...]
    classes: tuple[str, ...] | None
    n_bytes: int | None  # decoded
    block_rows: int | None
    rule: SplitRule | None


def find(
    source: object,
    dest: str | os.PathLike[str],
    *,
    labels: object = None,
    like: str | os.PathLike[str] | Dataset | None = None,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    split: dict[str, float] | None = None,
    split_by: str | None = None,
    split_how: str | None = None,
    split_seed: int | None = None,
    say: Say | None = None,
    scheduler: object = None,
    **arguments: Any,
) -> FoundData:
    """Do what `ingest` does before its first write: check the arguments, open the source, solve the memory."""
    check_option_names(arguments, ingest)
    request = parse_request(**arguments)
    rule = parse_split(split, by=split_by, how=split_how, seed=split_seed)
    given = given_to(scheduler, request, rule, Given(source=source, labels=labels, like=like))
    mode = parse_mode(overwrite=overwrite, append=append)
    begun = begin(given, dest, request, rule, mode, resume=resume, say=say, writes=False)
    opened, request, layout = begun.opened, begun.request, None
    if scheduler is not None:
        portable(opened)
        as_given(opened, source, labels)
    if opened.n_samples is not None:
        layout = plan_layout(
            opened.fields,
            opened.n_samples,
            block_bytes=request.block_bytes,
            shard_bytes=request.shard_bytes,
            codec="none" if request.codec == "auto" else request.codec,
        )
        stream = None if opened.seekable else RowStream(opened, 1)
        _check_sizes(layout, opened, stream, request, divides=begun.rule is not None)
    return FoundData(
        fields=opened.fields,
        own_fields=opened.fields if layout is None else layout.own_fields,
        n_samples=opened.n_samples,
        sources=opened.provenance,
        classes=opened.classes,
        n_bytes=None if layout is None else layout.n_bytes,
        block_rows=None if layout is None else layout.block_rows,
        rule=begun.rule,
    )


def _check_sizes(
    layout: Layout, source: Source, stream: RowStream | None, request: IngestRequest, *, divides: bool
) -> None:
    """Refuse a memory as the ingest does, which tries codecs where it is given none, but not while it divides rows."""
    if request.codec == "auto" and layout.encoded_fields:
        request = replace(request, codec=ENCODED_CODEC)
    codec = request.codec if request.codec != "auto" else "none" if divides else "lz4"
    sizes_for_request(replace(layout, codec=codec), source, stream, request)
