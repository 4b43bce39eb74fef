"""Worlds of the sources that an ingest reads: arrays, iterables and files of one array or several."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch
from scipy import sparse

import streamtrain as st
from streamtrain.ingestion.sources.registry import open_source
from tests.advice.world import World, X, Y, world

_ARRAYS = "ingestion/sources/arrays.py:"
_BASE = "ingestion/sources/base.py:"
_COMBINE = "ingestion/sources/combine.py:"
_ITERABLES = "ingestion/sources/iterables.py:"
_REGISTRY = "ingestion/sources/registry.py:"
_FORMATS = "ingestion/sources/recognition/formats.py:"
_FILES = "ingestion/sources/input_files.py:"
_BINARY = "ingestion/sources/binary.py:"
_COMPRESSED = "ingestion/sources/compressed.py:"


def ingest(source: Any, name: str = "new.zarr", **options: Any) -> st.Dataset:
    return st.ingest(source, name, progress=False, **options)


def check(w: World, wrong: Any, right: Any, **options: Any) -> None:
    """A source that is refused, and what its remedy makes of it."""
    w.refused(ingest, wrong, **options)
    ingest(right, **options)


@world(f"{_ARRAYS}open_array: pad it, x.to_padded_tensor(0.0)")
def nested_tensors(w: World) -> None:
    x = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    check(w, {"x": x}, {"x": x.to_padded_tensor(0.0)})


@world(f"{_ARRAYS}_no_array: x.float(), say")
def bfloat16_tensors(w: World) -> None:
    x = torch.from_numpy(X).bfloat16()
    check(w, {"x": x}, {"x": x.float()})


@world(f"{_ARRAYS}_no_array: give a NumPy array")
def lists_for_arrays(w: World) -> None:
    check(w, {"x": [[1.0], [2.0, 3.0]]}, {"x": np.array([[1.0, 0.0], [2.0, 3.0]])})


@world(f"{_ARRAYS}_common_length: give arrays of one length")
def arrays_of_two_lengths(w: World) -> None:
    check(w, {"x": X, "y": Y[:5]}, {"x": X, "y": Y})


@world(f"{_ARRAYS}_common_length: give at least one row")
def arrays_without_rows(w: World) -> None:
    check(w, {"x": X[:0]}, {"x": X[:1]})


@world(f"{_ARRAYS}_field: give an array of at least one axis")
def an_array_without_an_axis(w: World) -> None:
    check(w, {"x": np.float32(3)}, {"x": np.float32([3])})


@world(f"{_ARRAYS}DaskSource.__init__: call {{}}.compute_chunk_sizes() first")
def dask_arrays_of_unknown_length(w: World) -> None:
    x = da.from_array(X, chunks=20)
    kept = x[x[:, 0] > 0]
    w.refused(ingest, {"x": kept})
    kept.compute_chunk_sizes()
    ingest({"x": kept})


@world(f"{_BASE}field_of: drop the empty axis")
def samples_without_elements(w: World) -> None:
    check(w, {"x": X[:, :, None][:, :, :0]}, {"x": X})


@world(
    f"{_BASE}field_of: rename it where it comes from, or fields={{}}",
    f"{_BASE}_check_attribute: rename it, {{}} say: fields={{}}, and the other fields too",
    "store/layout.py:_check_names: rename the field",
)
def names_that_no_field_can_have(w: World) -> None:
    w.followed(ingest, {"my column": X})
    np.savez("given.npz", **{"a b": X})
    w.typed("ingest given.npz other.zarr")
    w.followed(ingest, {"ﬁt": X}, "third.zarr")
    for wrong in ({"a": X, "A": X}, {"con": X}):
        w.refused(ingest, wrong, "fourth.zarr")
    ingest({"a": X, "other_a": X}, "fourth.zarr")


@world(f"{_BASE}choose_fields: did you mean {{}}?", f"{_BASE}choose_fields: name one of these")
def members_that_are_not_there(w: World) -> None:
    np.savez("given.npz", images=X, labels=Y)
    assert "'images'" in w.refuses("ingest given.npz a.zarr --fields x=imagse,y=labels")
    w.refuses("ingest given.npz a.zarr --fields x=zzz,y=labels")
    w.works("ingest given.npz a.zarr --fields x=images,y=labels")


@world(f"{_BASE}unmasked: fill it in, x.filled(0) say, or leave such rows out of every field")
def masked_values(w: World) -> None:
    x = np.ma.masked_less(X, -1.0)
    w.refused(ingest, {"x": x, "y": Y})
    ingest({"x": x.filled(0), "y": Y}, "filled.zarr")
    kept = ~x.mask.any(axis=1)
    ingest({"x": x[kept], "y": Y[kept]}, "left_out.zarr")


@world(f"{_BASE}_check_bools: declare it as uint8")
def bytes_that_are_no_bools(w: World) -> None:
    Path("x.bin").write_bytes(bytes([0, 1, 2, 1]))
    w.refuses("ingest x.bin d.zarr --dtype bool --shape ''")
    w.works("ingest x.bin d.zarr --dtype uint8 --shape ''")


@world(
    f"{_BASE}_check_labels: number the classes from 0",
)
def labels_out_of_range(w: World) -> None:
    large = Y.astype(np.uint64) + np.uint64(2**63)
    w.refused(ingest, {"x": X, "y": large})
    ingest({"x": X, "y": large - np.uint64(2**63)}, "d.zarr")


@world(f"{_COMBINE}_check_counts: give the labels that belong to these features")
def labels_of_other_features(w: World) -> None:
    np.save("x.npy", X), np.save("y.npy", Y), np.save("z.npy", Y[:9])
    w.refuses("ingest x.npy d.zarr --labels z.npy")
    w.works("ingest x.npy d.zarr --labels y.npy")


@world(
    f"{_COMBINE}with_labels: leave labels out, or the label column",
    f"{_COMBINE}with_labels: give labels as a source of one field, or choose it: {{}}, say",
)
def labels_twice_or_several(w: World) -> None:
    np.savez("both.npz", x=X, y=Y), np.save("x.npy", X), np.save("y.npy", Y)
    w.refuses("ingest both.npz a.zarr --labels y.npy")
    w.works("ingest both.npz a.zarr")
    w.typed("ingest x.npy c.zarr --labels both.npz")


@world(
    f"{_COMBINE}ClassCheckedSource.__init__: give labels, or leave classes out",
    f"{_COMBINE}ClassCheckedSource._check: correct it, or the number of classes; leave classes out where y is a value to be predicted",
)
def classes_that_do_not_fit(w: World) -> None:
    w.refused(ingest, {"x": X}, classes=3)
    ingest({"x": X, "y": Y}, "a.zarr", classes=3)
    ingest({"x": X}, "b.zarr")
    w.refused(ingest, {"x": X, "y": Y}, classes=2)
    ingest({"x": X, "y": np.minimum(Y, 1)}, "c.zarr", classes=2)
    ingest({"x": X, "y": Y}, "d.zarr", classes=3)
    ingest({"x": X, "y": Y}, "e.zarr")


@world(f"{_COMBINE}concatenate: convert them to one dtype, shape and list of columns, or ingest them apart")
def files_of_two_shapes(w: World) -> None:
    np.save("a.npy", X), np.save("b.npy", X[:, :2]), np.save("c.npy", X)
    w.refuses("ingest a.npy b.npy d.zarr")
    w.works("ingest a.npy c.npy d.zarr")
    w.works("ingest b.npy e.zarr")


@world(f"{_ITERABLES}IterableSource.__init__: yield at least one dict of arrays")
def an_iterator_of_nothing(w: World) -> None:
    check(w, iter([]), iter([{"x": X}]))


@world(f"{_ITERABLES}IterableSource.__init__: give its path, whose suffix tells the format")
def an_open_file(w: World) -> None:
    np.save("x.npy", X)
    with Path("x.npy").open("rb") as file:
        check(w, file, file.name)


@world(f"{_ITERABLES}IterableSource._take_items: give a new one, or an iterable")
def an_iterator_read_before(w: World) -> None:
    source = open_source(iter([{"x": X}]))
    ingest(source, "a.zarr")
    w.refused(ingest, source, "b.zarr")
    ingest(iter([{"x": X}]), "b.zarr")
    ingest([{"x": X}], "c.zarr")


@world(f"{_ITERABLES}IterableSource._blocks: yield at least one row")
def an_iterator_of_empty_arrays(w: World) -> None:
    check(w, iter([{"x": X[:0]}]), iter([{"x": X[:1]}]))


@world(f'{_ITERABLES}_arrays: yield {{"x": x, "y": y}}, each with its rows first')
def an_iterator_of_arrays(w: World) -> None:
    check(w, iter([X, X]), iter([{"x": X, "y": Y}]))


@world(f"{_ITERABLES}_arrays: yield arrays with rows first: x[None] is one row")
def an_iterator_of_numbers(w: World) -> None:
    check(w, iter([{"y": np.int64(3)}]), iter([{"y": np.int64(3)[None]}]))


@world(f"{_ITERABLES}_checked: yield the same fields every time")
def an_iterator_whose_fields_change(w: World) -> None:
    check(w, iter([{"x": X}, {"z": X}]), iter([{"x": X}, {"x": X}]))


@world(f"{_ITERABLES}_checked: yield one dtype and shape")
def an_iterator_whose_shape_changes(w: World) -> None:
    check(w, iter([{"x": X}, {"x": X[:, :2]}]), iter([{"x": X}, {"x": X}]))


@world(f"{_ITERABLES}_checked: yield arrays of one length")
def an_iterator_of_two_lengths(w: World) -> None:
    check(w, iter([{"x": X, "y": Y[:3]}]), iter([{"x": X, "y": Y}]))


@world(f"{_FORMATS}_unknown: convert or rename it, or give dtype and shape to read it as raw binary")
def a_file_of_unknown_format(w: World) -> None:
    X.tofile("x.xyz")
    w.refuses("ingest x.xyz d.zarr")
    w.works("ingest x.xyz d.zarr --dtype float32 --shape 4")


@world(f"{_FORMATS}check_content: rename or convert it")
def a_file_of_the_wrong_name(w: World) -> None:
    with Path("x.npz").open("wb") as file:
        np.save(file, X)
    w.refuses("ingest x.npz d.zarr")
    Path("x.npz").rename("x.npy")
    w.works("ingest x.npy d.zarr")


@world(f"{_REGISTRY}_split_options: save the labels as .npy")
def raw_labels(w: World) -> None:
    X.tofile("x.bin"), Y.tofile("y.bin"), np.save("y.npy", Y)
    w.refuses("ingest x.bin d.zarr --dtype float32 --shape 4 --labels y.bin")
    w.works("ingest x.bin d.zarr --dtype float32 --shape 4 --labels y.npy")


@world(f"{_REGISTRY}_path: write the data to a file first")
def standard_input(w: World) -> None:
    w.refuses("ingest - d.zarr")
    np.save("x.npy", X)
    w.works("ingest x.npy d.zarr")


@world(f"{_REGISTRY}_check_in_memory: leave {{}} out")
def options_of_files_beside_arrays(w: World) -> None:
    w.refused(ingest, {"x": X}, label_column="y")
    ingest({"x": X})


@world(f'{_REGISTRY}_open_memory: {{"x": x, "y": y}}, say')
def a_number_for_a_source(w: World) -> None:
    check(w, 5, {"x": X, "y": Y})


@world(f"{_REGISTRY}_no_names: leave fields= out; of a table {{}}")
def names_for_a_lone_array(w: World) -> None:
    w.refused(ingest, X, fields={"a": "x"})
    ingest(X)
    Path("t.csv").write_text("a,b\n1,0\n2,1\n")
    w.typed("ingest t.csv d.zarr --fields x=a,y=b")


@world(f'{_REGISTRY}_open_arrays: {{"x": x, "y": y}}, say')
def arrays_without_names(w: World) -> None:
    check(w, {0: X}, {"x": X, "y": Y})


@world(
    "ingestion/sources/recognition/folders.py:files_in: give the folder that holds the data files",
)
def folders_without_files(w: World) -> None:
    Path("data/a").mkdir(parents=True)
    w.refuses("ingest data/a d.zarr")
    np.save("data/a/x.npy", X)
    w.refuses("ingest data d.zarr")
    w.works("ingest data/a d.zarr")


@world(f"{_REGISTRY}_check_one_kind: give files of one kind; labels go to labels=")
def files_of_two_kinds(w: World) -> None:
    np.save("x.npy", X), np.savez("y.npz", y=Y), np.save("y.npy", Y)
    w.refuses("ingest x.npy y.npz d.zarr")
    w.works("ingest x.npy d.zarr --labels y.npy")


@world(f"{_FILES}check_distinct: give every file once")
def a_file_twice(w: World) -> None:
    np.save("x.npy", X)
    w.refuses("ingest x.npy x.npy d.zarr")
    w.works("ingest x.npy d.zarr")


@world(f"{_FILES}check_file: write it again, or leave it out")
def an_empty_file(w: World) -> None:
    Path("x.npy").write_bytes(b"")
    w.refuses("ingest x.npy d.zarr")
    np.save("x.npy", X)
    w.works("ingest x.npy d.zarr")


@world(f"{_FILES}look_up: did you mean {{}}?", f"{_FILES}look_up: check the path")
def a_file_that_is_not_there(w: World) -> None:
    np.save("train.npy", X)
    assert "train.npy" in w.refuses("ingest trian.npy d.zarr")
    w.refuses("ingest zzz/zzz.npy d.zarr")
    w.works("ingest train.npy d.zarr")


@world(f"{_FILES}refuse_options: leave {{}} out")
def options_of_other_formats(w: World) -> None:
    np.save("x.npy", X)
    w.refuses("ingest x.npy d.zarr --columns a,b")
    w.works("ingest x.npy d.zarr")


@world(f"{_FILES}check_size: write or download the file again", f"{_FILES}_short: write or download it again")
def a_file_cut_short(w: World) -> None:
    np.save("x.npy", X)
    whole = Path("x.npy").read_bytes()
    Path("x.npy").write_bytes(whole[:-8])
    w.refuses("ingest x.npy d.zarr")
    Path("x.npy").write_bytes(whole)
    w.works("ingest x.npy d.zarr")
    Path("y.idx").write_bytes(b"\0\0\x08\x02\0")
    w.refuses("ingest y.idx e.zarr")
    Path("y.idx").write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + b"abc")
    w.works("ingest y.idx e.zarr")


@world(
    f"{_BINARY}probe_raw: dtype='float32' and shape=(3, 32, 32), say; one number per sample is shape=()",
    f"{_BINARY}probe_raw: give the shape of one sample",
    f"{_BINARY}probe_raw: correct the dtype or the shape, or write the file again",
)
def raw_files(w: World) -> None:
    np.zeros((4, 3, 32, 32), "f4").tofile("x.bin")
    w.typed("ingest x.bin a.zarr --dtype float32")
    w.refuses("ingest x.bin b.zarr --dtype float32 --shape 0,3")
    w.refuses("ingest x.bin b.zarr --dtype float32 --shape 7")
    w.works("ingest x.bin b.zarr --dtype float32 --shape 3,32,32")


@world(
    f"{_BINARY}read_header: write the file again with np.save",
    f"{_BINARY}packing_of: store an array of at least one axis",
    f"{_BINARY}packing_of: leave the file out",
)
def headers_of_npy_files(w: World) -> None:
    Path("x.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': garbage")
    w.refuses("ingest x.npy d.zarr")
    np.save("x.npy", np.float32(3))
    w.refuses("ingest x.npy d.zarr")
    np.save("x.npy", X[:0])
    w.refuses("ingest x.npy d.zarr")
    np.save("x.npy", X)
    w.works("ingest x.npy d.zarr")


@world(
    f"{_COMPRESSED}_check_directory: save arrays into it: np.savez(path, x=x)",
    f"{_COMPRESSED}_check_directory: write it with np.savez",
    f"{_COMPRESSED}_check_directory: write it again with np.savez",
)
def archives_that_are_none_of_numpy(w: World) -> None:
    array = io.BytesIO()
    np.save(array, X)
    for n_copies, name in ((0, "x.npy"), (1, "x.txt"), (2, "x.npy")):
        with warnings.catch_warnings(), zipfile.ZipFile("x.npz", "w") as archive:
            warnings.simplefilter("ignore")
            for _ in range(n_copies):
                archive.writestr(name, array.getvalue())
        w.refuses("ingest x.npz d.zarr")
    np.savez("x.npz", x=X)
    w.works("ingest x.npz d.zarr")


@world(
    f"{_COMPRESSED}_check_not_sparse: in Python, import scipy.sparse, streamtrain as st; "
    'st.ingest({"x": scipy.sparse.load_npz({}).tocsr()}, "data.zarr")'
)
def matrices_that_scipy_saved(w: World) -> None:
    sparse.save_npz("x.npz", sparse.coo_matrix(X.reshape(len(X), -1)))
    fix = w.refused(ingest, "x.npz")
    exec(fix.removeprefix("in Python, "))
    assert len(st.open("data.zarr")) == len(X)


@world(f"{_COMPRESSED}_check_member: write it with np.savez")
def members_by_another_method(w: World) -> None:
    array = io.BytesIO()
    np.save(array, X)
    with zipfile.ZipFile("x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", array.getvalue())
    w.refuses("ingest x.npz d.zarr")
    np.savez("x.npz", x=X)
    w.works("ingest x.npz d.zarr")


@world(f"{_COMPRESSED}_check_lengths: choose those that belong together: fields={{}}, say")
def members_of_two_lengths(w: World) -> None:
    np.savez("x.npz", train=X, train_labels=Y, test=X[:9])
    w.refuses("ingest x.npz d.zarr")
    w.works("ingest x.npz d.zarr --fields x=train,y=train_labels")


@world(f"{_COMPRESSED}unpacking: write or download the file again")
def damaged_compression(w: World) -> None:
    whole = struct.pack(">HBBI", 0, 8, 1, 3000) + bytes(range(250)) * 12
    packed = gzip.compress(whole)
    Path("y.idx.gz").write_bytes(packed[:40] + b"\xff" * 20 + packed[60:])
    w.refuses("ingest y.idx.gz d.zarr")
    Path("y.idx.gz").write_bytes(packed)
    w.works("ingest y.idx.gz d.zarr")


@world("ingestion/sources/idx.py:_read_header: check that the file is what its name says")
def a_file_that_is_no_idx(w: World) -> None:
    Path("y.idx").write_bytes(b"\x00\x00\x77\x01" + bytes(30))
    w.refuses("ingest y.idx d.zarr")
    Path("y.idx").write_bytes(struct.pack(">HBBI", 0, 8, 1, 3) + b"abc")
    w.works("ingest y.idx d.zarr")
