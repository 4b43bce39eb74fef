"""What ``ingest`` and ``info`` both say of a dataset, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamtrain.store.dataset import Dataset


def stored_facts(dataset: Dataset) -> dict[str, Any]:
    """A dataset's identity, size, blocks and classes, for ``--json``; ``bytes`` are those of the decoded samples."""
    layout = dataset.layout
    return {
        "dataset": str(dataset.path),
        "id": dataset.id,
        "samples": len(dataset),
        "bytes": dataset.nbytes,
        "stored_bytes": dataset.stored_bytes,
        "codec": layout.codec,
        "block_rows": layout.block_rows,
        "block_bytes": layout.block_bytes,
        "blocks": layout.n_blocks,
        "shards": layout.n_shards * len(layout.fields),
        "classes": dict(enumerate(dataset.classes)) if dataset.classes else None,
    }
