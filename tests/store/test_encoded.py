"""Encoded fields on disk: two plain arrays for any Zarr reader, checked like every other field."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

import streamtrain as st
from streamtrain.errors import DatasetError
from streamtrain.store.layout import Field, Layout
from streamtrain.store.media.encoded import largest_block, objects_of, pack, unpack
from tests.support.images import CLASSES, class_folders


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return class_folders(tmp_path_factory.mktemp("images") / "in")


@pytest.fixture(scope="module")
def dataset(paths: list[Path]) -> st.Dataset:
    root = paths[0].parent.parent
    return st.ingest(root, root.parent / "d.zarr", block="6KB", shard="32KB")


def test_the_samples_are_the_bytes_of_the_files(dataset: st.Dataset, paths: list[Path]) -> None:
    files = [path.read_bytes() for path in paths]
    assert dataset[:]["image"] == files
    assert dataset[7]["image"] == files[7]
    assert dataset[-1]["image"] == files[-1]
    assert dataset[30:5:-3]["image"] == files[30:5:-3]
    assert [sample["image"] for sample in dataset] == files
    with pytest.warns(st.StreamtrainWarning, match="random indices"):
        assert [sample["image"] for sample in dataset.__getitems__([3, 3, 20])] == [files[3], files[3], files[20]]
    assert dataset[:]["y"].tolist() == [CLASSES.index(path.parent.name) for path in paths]
    assert dataset[0].keys() == {"image", "y"}  # lengths are no facts of a sample


def test_stock_zarr_reads_two_plain_arrays(dataset: st.Dataset, paths: list[Path]) -> None:
    group = zarr.open_group(dataset.path, mode="r")
    blocks, lengths = np.asarray(group["image"]), np.asarray(group["image_bytes"])
    ours = dict(group["image"].attrs)["streamtrain"]
    assert ours == {
        "encoded": "image",
        "lengths": "image_bytes",
        "media": ["image/jpeg", "image/png", "image/webp"],
    }
    rows, found = dataset.layout.block_rows, []
    for block, data in enumerate(blocks):
        end = 0
        for n_bytes in lengths[block * rows : (block + 1) * rows].tolist():
            found.append(data[end : end + n_bytes].tobytes())
            end += n_bytes
        assert not data[end:].any()
    assert found == [path.read_bytes() for path in paths]
    assert blocks.shape[1] % 4096 == 0
    assert blocks.shape[0] == dataset.layout.n_blocks


def test_the_channels_have_their_statistics_every_image_counting_alike(dataset: st.Dataset, paths: list[Path]) -> None:
    images = [np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"), np.float64) for path in paths]
    means = np.array([image.mean(axis=(0, 1)) for image in images])
    squares = np.array([np.square(image).mean(axis=(0, 1)) for image in images])
    stats = dataset.stats("image")
    np.testing.assert_allclose(stats.mean, means.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats.std, np.sqrt(squares.mean(axis=0) - means.mean(axis=0) ** 2), rtol=1e-10)
    assert stats.min.tolist() == np.min([image.min(axis=(0, 1)) for image in images], axis=0).tolist()
    assert stats.images is not None
    assert stats.images.media == {"image/jpeg": 24, "image/png": 6, "image/webp": 6}
    assert stats.images.most_pixels == max(image.shape[0] * image.shape[1] for image in images)


def test_older_versions_refuse_it_by_the_number_of_its_format(dataset: st.Dataset, tmp_path: Path) -> None:
    assert dataset.manifest.format == 3
    assert st.ingest({"x": np.arange(9.0)}, tmp_path / "plain").manifest.format == 1


@pytest.mark.parametrize("field", ["image", "image_bytes"])
def test_every_flipped_bit_of_the_stored_bytes_is_found(field: str, dataset: st.Dataset, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset.path, copy)
    shard = copy / st.open(copy).shard_path(field, 0).relative_to(copy)
    data = shard.read_bytes()
    assert not st.verify(copy, full=True).damage
    for at in np.linspace(0, len(data) - 1, 25).astype(int).tolist():
        shard.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        damage = st.verify(copy, full=True).damage
        assert damage
        assert field in str(damage[0].where)


def test_a_layout_without_lengths_is_refused(dataset: st.Dataset, tmp_path: Path) -> None:
    from streamtrain.store.manifest import layout_json, parse_layout

    found = layout_json(dataset.layout)
    assert parse_layout(found) == dataset.layout
    without = {**found, "fields": [field for field in found["fields"] if field["name"] != "image_bytes"]}
    with pytest.raises(ValueError, match="lengths"):
        parse_layout(without)
    wrong = json.loads(json.dumps(found))
    wrong["fields"][0]["dtype"] = "uint16"
    with pytest.raises(ValueError, match="encoded"):
        parse_layout(wrong)
    wrong = json.loads(json.dumps(found))
    wrong["fields"][0]["encoded"]["check"] = "none"
    with pytest.raises(ValueError, match="encoded"):
        parse_layout(wrong)


def test_lengths_beyond_their_block_are_damage(dataset: st.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a writer with a bug makes such a dataset; nothing may be read past a block all the same."""
    read_block = st.Dataset.read_block

    def doubled(self: st.Dataset, field: str, block: int) -> np.ndarray:  # type: ignore[type-arg]
        found = read_block(self, field, block)
        return found * 100 if field == "image_bytes" else found

    monkeypatch.setattr(st.Dataset, "read_block", doubled)
    with pytest.raises(DatasetError, match="more than a block's"):
        dataset[0]


def test_packing_and_unpacking() -> None:
    samples = objects_of([b"abc", b"", b"de"])
    block = pack(samples, 8)
    assert bytes(block) == b"abcde\0\0\0"
    assert unpack(block, np.array([3, 0, 2], np.uint32)).tolist() == [b"abc", b"", b"de"]
    with pytest.raises(ValueError, match="more than its 4"):
        pack(samples, 4)
    assert largest_block(np.array([1, 2, 3, 4, 5]), 2) == 7


def test_the_rows_of_a_block_share_its_pages(dataset: st.Dataset) -> None:
    layout: Layout = dataset.layout
    image: Field = layout.field("image")
    assert layout.block_rows & (layout.block_rows - 1) == 0
    assert image.row_bytes * layout.block_rows % 4096 == 0
    assert image.sample_kind == (np.dtype(object), ())
