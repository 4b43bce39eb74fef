"""Datasets that do not open, and what is said of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import streamtrain
from streamtrain.errors import DamagedBlock, DatasetError, StreamtrainError
from streamtrain.store.codec import checksum, checksum_bytes


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "d.zarr"
    x = np.random.default_rng(0).integers(0, 256, (40, 16), np.uint8)
    streamtrain.ingest({"x": x, "y": np.arange(40) % 4}, path, block=24 * 4, shard=16 * 12, codec="none")
    return path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "d.zarr"))


def _refused(path: Path, match: str) -> DatasetError:
    with pytest.raises(DatasetError, match=match) as caught:
        streamtrain.open(path)
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, OSError)
    return caught.value


def _edit_root(path: Path, **changes: Any) -> None:
    root = json.loads((path / "zarr.json").read_bytes())
    root["attributes"]["streamtrain"] |= changes
    (path / "zarr.json").write_text(json.dumps(root))


def _edit_manifest(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and make the root agree with it, as who means harm would."""
    manifest = json.loads((path / "_streamtrain/manifest.json").read_bytes())
    edit(manifest)
    _write_manifest(path, json.dumps(manifest).encode())


def _write_manifest(path: Path, data: bytes) -> None:
    (path / "_streamtrain/manifest.json").write_bytes(data)
    _edit_root(path, manifest_sha256=hashlib.sha256(data).hexdigest())


def test_opens_without_importing_zarr_or_torch(original: Path) -> None:
    code = (
        "import sys, streamtrain; d = streamtrain.open(sys.argv[1]); d.stats('x');"
        "sys.exit(' '.join({'zarr', 'torch', 'dask'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(original)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_missing(original: Path, tmp_path: Path) -> None:
    _refused(tmp_path / "nothing.zarr", "no such dataset")
    _refused(original.with_name("dd.zarr"), r"did you mean '.*/d\.zarr'")
    _refused(original.with_name("missing.zarr"), "check the path")


def test_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"1")
    _refused(tmp_path / "x.npy", "a file, not a dataset")


def test_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    _refused(tmp_path, "not a streamtrain dataset: there is no zarr.json")


def test_plain_zarr(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g")
    _refused(tmp_path / "g", "it has no manifest")


def test_incomplete(copy: Path) -> None:
    (copy / "zarr.json").unlink()
    _refused(copy, "incomplete dataset: its ingest did not finish")


def test_newer_format(copy: Path) -> None:
    _edit_root(copy, format=4)
    _refused(copy, "pip install -U streamtrain")


def test_manifest_changed(copy: Path) -> None:
    manifest = copy / "_streamtrain/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"block_rows":4', b'"block_rows":5'))
    _refused(copy, "not the one that was committed")


def test_manifest_missing(copy: Path) -> None:
    (copy / "_streamtrain/manifest.json").unlink()
    _refused(copy, "cannot be read")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"{", "not what streamtrain wrote"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"{}", "missing 'layout'"),
        (b'{"layout": 3}', "does not make sense"),
        (b"[" * 100_000, "not what streamtrain wrote"),
    ],
)
def test_manifest_is_not_one(copy: Path, data: bytes, match: str) -> None:
    _write_manifest(copy, data)
    _refused(copy, match)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m["layout"].update(n_samples=10**15),
        lambda m: m["layout"].update(block_rows=0),
        lambda m: m["layout"].update(codec="pickle"),
        lambda m: m["layout"]["fields"][0].update(name="../x"),
        lambda m: m["layout"]["fields"][0].update(dtype="object"),
        lambda m: m["files"].update({"../../outside": [0, 0]}),
        lambda m: m["files"].pop("x/c/0/0"),
        lambda m: m.update(classes=["a"]),
        lambda m: m.update(id="0" * 64),
    ],
)
def test_manifest_that_claims_something_else(copy: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    _edit_manifest(copy, edit)
    _refused(copy, "manifest|does not match its content")


def test_array_description_changed(copy: Path) -> None:
    description = copy / "x/zarr.json"
    text = description.read_bytes()
    description.write_bytes(text.replace(b'"fill_value": 0', b'"fill_value": 1'))
    _refused(copy, r"x/zarr\.json: the file is not the one that was written")


@pytest.mark.parametrize("key", ["x/c/1/0", "y/c/0", "_streamtrain/crc32c/c/0/0", "y/zarr.json"])
def test_file_missing_cut_or_linked(copy: Path, key: str) -> None:
    data = (copy / key).read_bytes()
    (copy / key).write_bytes(data[:-1])
    assert key in str(_refused(copy, f"{len(data):,} were written"))
    (copy / key).unlink()
    assert key in str(_refused(copy, "a stored file is missing"))
    (copy / "aside").write_bytes(data)
    (copy / key).symlink_to(copy / "aside")
    _refused(copy, "a link or something else")


@pytest.mark.parametrize("folder", ["x", "x/c", "x/c/1", "_streamtrain", "_streamtrain/stats/y/c"])
def test_a_folder_that_is_a_link_leads_elsewhere(copy: Path, tmp_path: Path, folder: str) -> None:
    (copy / folder).rename(tmp_path / "elsewhere")
    (copy / folder).symlink_to(tmp_path / "elsewhere")
    assert f"{copy}/{folder}" in str(_refused(copy, "a link or something else where a folder must be"))


@pytest.mark.parametrize("key", ["zarr.json", "_streamtrain/manifest.json"])
def test_root_and_manifest_are_files(copy: Path, tmp_path: Path, key: str) -> None:
    (copy / key).rename(tmp_path / "elsewhere")
    (copy / key).symlink_to(tmp_path / "elsewhere")
    assert key in str(_refused(copy, "a link where a stored file must be"))
    (copy / key).unlink()
    os.mkfifo(copy / key)  # opening one to read waits for a writer
    assert key in str(_refused(copy, "a link, a pipe or something else"))


def test_a_manifest_larger_than_any(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamtrain.store.dataset.MOST_MANIFEST_BYTES", 100)
    assert "manifest.json" in str(_refused(copy, "larger than the 100 bytes it may have"))
    with (copy / "zarr.json").open("r+b") as root:
        root.truncate(10**12)  # a hole: no disk is used, and no memory may be
    assert "zarr.json" in str(_refused(copy, "larger than the 16,777,216 bytes it may have"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: root.update(zarr_format=2),
        lambda root: root.update(node_type="array"),
        lambda root: root["attributes"].update(more=1),
        lambda root: root.pop("zarr_format"),
    ],
)
def test_the_root_is_all_ours(copy: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    root = json.loads((copy / "zarr.json").read_bytes())
    edit(root)
    (copy / "zarr.json").write_text(json.dumps(root))
    _refused(copy, "the root is not the one that was committed")


def test_checksum_table_changed(copy: Path) -> None:
    table = copy / "_streamtrain/crc32c/c/0/0"
    data = bytearray(table.read_bytes())
    data[3] ^= 1
    table.write_bytes(data)
    _refused(copy, "the file is not the one that was written")


def _resealed(path: Path, key: str, edit: Callable[[bytes], bytes], **layout: Any) -> None:
    """Change a stored file and make manifest and root agree with it."""
    data = edit((path / key).read_bytes())
    (path / key).write_bytes(data)
    stored = [len(data), checksum(data)]
    _edit_manifest(path, lambda manifest: (manifest["files"].update({key: stored}), manifest["layout"].update(layout)))


def test_a_small_file_that_claims_a_huge_array(copy: Path) -> None:
    # One block of 10^12 rows in one shard: the number of files is right, and the names of all are.
    huge = {"n_samples": 10**12, "block_rows": 10**12, "shard_blocks": 1}

    def shrink(manifest: dict[str, Any]) -> None:
        manifest["layout"].update(huge)
        kept = {key for key in manifest["files"] if "/c/" not in key or key.startswith("_") or "/c/0" in key}
        manifest["files"] = {key: file for key, file in manifest["files"].items() if key in kept}
        manifest["files"]["_streamtrain/crc32c/c/0/0"] = [8, 0]

    _edit_manifest(copy, shrink)
    tracemalloc.start()
    message = str(_refused(copy, "the layout claims more or less than x/c/0/0 holds"))
    assert "Its shape needs 16,000,000,000,0" in message
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_compressed_block_that_decodes_to_less_or_more_than_it_must(tmp_path: Path) -> None:
    n_zeros = 1 << 17
    streamtrain.ingest({"x": np.zeros(n_zeros, np.uint8)}, tmp_path / "d", block=n_zeros, codec="zstd")
    shard = tmp_path / "d/x/c/0"
    encoded = shard.read_bytes()[:-24]
    for lie in (n_zeros // 2, 2**31 - 17):
        forged = encoded[:4] + lie.to_bytes(4, "little") + encoded[8:]
        body = forged + checksum_bytes(checksum(forged))
        index = (0).to_bytes(8, "little") + len(body).to_bytes(8, "little")
        shard.write_bytes(body + index + checksum_bytes(checksum(index)))
        _resealed(tmp_path / "d", "x/c/0", bytes)
        message = str(_refused(tmp_path / "d", "block 0 of field x is not of the shape that the layout claims"))
        assert f"It would decode to {lie:,} bytes; a block has 131,072" in message


def test_statistics_of_another_length(copy: Path) -> None:
    _resealed(copy, "_streamtrain/stats/x/c/0/0", lambda data: data[:-8])
    _refused(copy, "the layout claims more or less than _streamtrain/stats/x/c/0/0 holds")


def test_flipped_bit_is_found_when_read(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    shard = dataset.shard_path("x", 1)
    data = bytearray(shard.read_bytes())
    data[70] ^= 4  # the second block of four rows of sixteen bytes
    shard.write_bytes(data)
    dataset.read_block("x", 3)
    with pytest.raises(DamagedBlock, match=r"block 4 of field x \(samples 16 to 19\) is damaged") as caught:
        dataset[16:18]
    assert str(shard) in str(caught.value)
    assert caught.value.exit_code == 4


def test_swapped_valid_blocks_are_found_when_read(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    shard = dataset.shard_path("x", 0)
    data = shard.read_bytes()
    shard.write_bytes(data[68:136] + data[:68] + data[136:])
    np.testing.assert_array_equal(
        zarr.open_array(copy / "x", mode="r")[:4], np.frombuffer(data[68:132], np.uint8).reshape(4, 16)
    )
    with pytest.raises(DamagedBlock, match="block 0 of field x"):
        dataset.read_block("x", 0)


def test_shard_index_damaged(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    shard = dataset.shard_path("y", 0)
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match="index does not match its checksum"):
        dataset.read_block("y", 0)


def test_shard_gone_or_cut_after_opening(copy: Path) -> None:
    dataset = streamtrain.open(copy)
    shard = dataset.shard_path("x", 0)
    shard.write_bytes(b"12")
    with pytest.raises(DatasetError, match="less than its index"):
        dataset.read_block("x", 0)
    shard.unlink()
    with pytest.raises(StreamtrainError, match=r"block 0 of field x .* cannot be read: No such file"):
        dataset.read_block("x", 0)
