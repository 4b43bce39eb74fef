"""Worlds of HDF5, NetCDF4 and Zarr: arrays that are named, found, decoded, and those that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from streamtrain.system.syscalls import Syscalls
from tests.advice.sources import ingest
from tests.advice.world import World, X, Y, world

_IN = "ingestion/sources/hierarchies/"
_CF, _HDF5, _ZARR = f"{_IN}cf.py:", f"{_IN}hdf5.py:", f"{_IN}zarr_arrays.py:"
_CHOICE, _SOURCE, _ARRAY = f"{_IN}field_choice.py:", f"{_IN}hierarchy_source.py:", f"{_IN}stored_array.py:"


def h5(fill: Callable[[h5py.File], Any] | None = None, name: str = "a.h5", **arrays: Any) -> Path:
    with h5py.File(name, "w") as file:
        for path, values in arrays.items():
            file[path] = values
        if fill is not None:
            fill(file)
    return Path(name)


def attributes(**given: Any) -> Path:
    """An array of small integers with these attributes."""
    return h5(lambda file: file.create_dataset("x", data=np.arange(9, dtype="i2")).attrs.update(given))


def cured(w: World, wrong: Callable[[h5py.File], Any], right: Callable[[h5py.File], Any]) -> None:
    """An array x that is refused, and another one in its place."""
    h5(wrong)
    w.refuses("ingest a.h5 d.zarr --fields x=/x --overwrite")
    h5(right)
    w.works("ingest a.h5 d.zarr --fields x=/x --overwrite")


@world("ingestion/request.py:source_options: sample_axis=0")
def an_axis_that_is_none(w: World) -> None:
    h5(x=X)
    w.typed("ingest a.h5 d.zarr --sample-axis -1")


@world(
    f"{_SOURCE}_check_options: transpose it first, so that the samples are its first axis: xarray's Dataset.transpose, say"
)
def samples_along_another_axis(w: World) -> None:
    h5(x=X.T)
    w.refuses("ingest a.h5 d.zarr --sample-axis 1")
    h5(x=X)
    w.works("ingest a.h5 d.zarr --sample-axis 0")


@world(
    f"{_CF}decoding_of: name it as a date: dates={{}}; or as it is stored, decode='raw'",
    f"{_CF}_of_dates: decode='raw' takes the numbers as stored; leave dates= out",
)
def numbers_that_count_time(w: World) -> None:
    attributes(units="days since 2000-01-01")
    w.typed("ingest a.h5 d.zarr --fields x=/x --overwrite")
    attributes(units="days since 2000-01-01", calendar="noleap")
    w.refuses("ingest a.h5 d.zarr --fields x=/x --dates x --overwrite")
    w.works("ingest a.h5 d.zarr --fields x=/x --decode raw --overwrite")


@world(
    f"{_CF}_of_dates: leave dates= out: it is a number",
    f"{_SOURCE}_check_dates: take it as a field too: fields={{}}, and the others",
)
def dates_that_are_none(w: World) -> None:
    h5(x=X, day=np.arange(60))
    w.refuses("ingest a.h5 d.zarr --dates day")
    w.works("ingest a.h5 d.zarr")
    w.refused(ingest, "a.h5", fields={"x": "/x"}, dates="day")
    with h5py.File("a.h5", "a") as file:
        file["day"].attrs["units"] = "days since 2000-01-01"
    ingest("a.h5", fields={"x": "/x", "day": "/day"}, dates="day")


@world("ingestion/rows.py:_remedy: write it as the training data was written")
def inputs_that_count_time_only_in_new_data(w: World) -> None:
    h5(x=X, y=Y)
    w.works("ingest a.h5 d.zarr")
    w.works("train d.zarr --model linear --epochs 1 --out run --memory 16MB --batch-size 20")
    h5(lambda file: file.create_dataset("x", data=X).attrs.update(units="days since 2000-01-01"))
    w.refuses("predict run a.h5")
    h5(x=X)
    w.works("predict run a.h5")


@world(
    f"{_CF}_refuse: correct the attribute, or take the values as stored: decode='raw'",
    f"{_HDF5}_attribute: correct the attribute",
)
def attributes_that_make_no_sense(w: World) -> None:
    attributes(scale_factor="half")
    w.typed("ingest a.h5 d.zarr --overwrite")
    attributes(scale_factor=np.ones(300))
    w.refuses("ingest a.h5 d.zarr --overwrite")
    attributes(scale_factor=0.5)
    w.works("ingest a.h5 d.zarr --overwrite")


@world(
    f"{_SOURCE}HierarchySource._decode: {{}}; or keep them as NaN: nan='keep'",
    f"{_SOURCE}HierarchySource._decode: leave such rows out: {{}}",
)
def missing_values(w: World) -> None:
    attributes(_FillValue=np.int16(4))
    w.typed("ingest a.h5 d.zarr")
    w.refuses("ingest a.h5 e.zarr --fields y=/x --nan keep")
    attributes(_FillValue=np.int16(-4))
    w.works("ingest a.h5 e.zarr --fields y=/x")


@world(f"{_SOURCE}HierarchySource._absent: write them; or keep missing values as NaN: nan='keep'")
def chunks_that_are_not_there(w: World) -> None:
    zarr.create_array("x", shape=(40,), chunks=(10,), dtype="f4", fill_value=np.nan)[:10] = 1
    w.typed("ingest x d.zarr")


@world(
    f"{_IN}chunk_decoding.py:ChunkCodec.decode: write or copy the data again",
    f"{_ZARR}ZarrArray.chunk: write or copy the array again",
    f"{_ZARR}ZarrArray._locate_in_shard: write or copy the array again",
)
def chunks_that_are_damaged(w: World) -> None:
    for shards, change in (
        (None, lambda data: data[:-1]),
        (None, lambda data: data * 900),
        ((20,), lambda data: data[:9]),
    ):
        x = zarr.create_array("x", shape=(40,), chunks=(10,), shards=shards, dtype="f4", overwrite=True)
        x[:] = np.arange(40.0)
        whole = Path("x/c/1").read_bytes()
        Path("x/c/1").write_bytes(change(whole))
        w.refuses("ingest x d.zarr --overwrite")
        Path("x/c/1").write_bytes(whole)
        w.works("ingest x d.zarr --overwrite")


@world(
    f"{_HDF5}Hdf5Array._beyond: write or download it again",
    f"{_HDF5}Hdf5Array.chunk: write or copy the data again",
    f"{_HDF5}_refused: write or download it again",
    f"{_HDF5}_refused: close it there first; where no program has it open, h5clear -s {{}}",
)
def files_that_are_damaged(w: World) -> None:
    writer = h5py.File("w.h5", "w", libver="latest")
    writer["x"] = X
    writer.swmr_mode = True
    Path("a.h5").write_bytes(Path("w.h5").read_bytes())
    writer.close()
    w.refuses("ingest a.h5 d.zarr")
    w.works("ingest w.h5 d.zarr")
    whole = Path("w.h5").read_bytes()
    Path("a.h5").write_bytes(whole[:-50])
    w.refuses("ingest a.h5 e.zarr")
    path = h5(lambda file: file.create_dataset("x", data=X, chunks=(10, 4), compression="gzip"))
    whole = path.read_bytes()
    with h5py.File(path, "a") as file:
        offset = file["x"].id.get_chunk_info(1).byte_offset.to_bytes(8, "little")
        file["x"].id.write_direct_chunk((10, 0), bytes(9000))
    w.refuses("ingest a.h5 e.zarr")
    path.write_bytes(whole.replace(offset, (10**9).to_bytes(8, "little")))
    w.refuses("ingest a.h5 e.zarr")
    path.write_bytes(whole)
    w.works("ingest a.h5 e.zarr")


@world("ingestion/sources/recognition/formats.py:_unknown: write or download it again")
def files_that_are_named_like_hdf5(w: World) -> None:
    Path("a.nc").write_text("<html>not found</html>")
    w.refuses("ingest a.nc d.zarr")
    h5(x=X, name="a.nc")
    w.works("ingest a.nc d.zarr")


@world(f"{_IN}over_disk.py:check_room: free some space, another disk, or a larger memory=")
def a_row_of_chunks_and_no_disk(w: World) -> None:
    zarr.create_array("x", data=np.ones((700, 50, 60), "f4"), chunks=(650, 7, 11))
    with w.monkeypatch.context() as patch:
        patch.setattr(Syscalls, "free", lambda system, path: (5_000_000, None))
        w.refuses("ingest x d.zarr --memory 30MB --block 100KB --codec lz4")
        w.works("ingest x d.zarr --memory 60MB --block 100KB --codec lz4")
    w.works("ingest x e.zarr --memory 30MB --block 100KB")


@world(f"{_CHOICE}refuse_columns: arrays are named as fields: fields={{}}")
def options_of_columns(w: World) -> None:
    h5(x=X, next=Y, time=np.arange(60))
    w.refuses("ingest a.h5 d.zarr --label-column next --id-column time")
    w.works("ingest a.h5 d.zarr --fields x=/x,y=/next,id=/time")


@world(f"{_CHOICE}named_arrays: name arrays of one length")
def arrays_of_two_lengths_in_a_file(w: World) -> None:
    h5(x=X, y=Y, z=Y[:9])
    w.refuses("ingest a.h5 d.zarr --fields x=/x,y=/z")
    w.works("ingest a.h5 d.zarr --fields x=/x,y=/y")


@world(f"{_CHOICE}_absent: did you mean {{}}?", f"{_CHOICE}_absent: name one of these")
def arrays_that_are_not_there(w: World) -> None:
    h5(images=X)
    assert "'/images'" in w.refuses("ingest a.h5 d.zarr --fields x=/imagse")
    w.refuses("ingest a.h5 d.zarr --fields x=/zzz")
    w.works("ingest a.h5 d.zarr --fields x=/images")


@world(
    f"{_CHOICE}longest_arrays: give the file or folder that holds the data",
    f"{_CHOICE}_undecided: choose what becomes which field: fields={{}}, say",
    f"{_HDF5}_members_of: name one of its arrays: {{}}",
    f"{_HDF5}_members_of: name an array; this group is empty",
)
def arrays_to_choose_from(w: World) -> None:
    h5(lambda file: file.create_group("empty"))
    w.refuses("ingest a.h5 d.zarr")
    h5(lambda file: file.create_group("empty"), **{"train/x": X, "test/x": X[:9]})
    w.refuses("ingest a.h5 d.zarr --fields x=/empty")
    w.refuses("ingest a.h5 d.zarr --fields x=/train")
    w.typed("ingest a.h5 d.zarr")


@world(
    f"{_HDF5}_dtype_of: store a number for each text",
    f"{_HDF5}_dtype_of: pad the rows to one length, or iterate over the file and yield arrays",
    f"{_HDF5}_dtype_of: name what they refer to",
    f"{_HDF5}_dtype_of: store each member as a dataset of its own",
    f"{_HDF5}_dtype_of: store their real and imaginary parts as two datasets",
    f"{_HDF5}_dtype_of: store them as further axes",
    f"{_HDF5}_dtype_of: store numbers of a plain dtype",
    f"{_ARRAY}unfit_shape: name an array whose first axis is samples",
    f"{_ARRAY}unfit_shape: leave it out",
)
def elements_that_are_no_numbers(w: World) -> None:
    for dtype in (h5py.string_dtype(), h5py.vlen_dtype("f4"), h5py.ref_dtype, [("a", "f4")], "c8", ("f4", (2,)), "V3"):
        kind = dtype if isinstance(dtype, np.dtype) else np.dtype(dtype)
        cured(
            w,
            lambda file, kind=kind: file.create_dataset("x", (60,), kind),
            lambda file: file.create_dataset("x", data=X),
        )  # type: ignore[misc]
    for shape in ((), (0, 4)):
        cured(
            w,
            lambda file, shape=shape: file.create_dataset("x", shape, "f4"),
            lambda file: file.create_dataset("x", data=X),
        )  # type: ignore[misc]


@world(
    f"{_HDF5}_unfit: copy the values into one file: h5repack {{}} NEW.h5, then ingest that",
    f"{_HDF5}_unfit: copy the values into one file: h5repack -l CONTI {{}} NEW.h5, then ingest that",
    f"{_HDF5}_followed: give that file itself, if it is meant",
)
def values_in_other_files(w: World) -> None:
    h5(x=X, name="other.h5")

    def beside(file: h5py.File) -> None:
        file.create_dataset("x", X.shape, "f4", external=[("x.bin", 0, X.nbytes)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", X.shape)
        file.create_virtual_dataset("x", layout)

    def linked(file: h5py.File) -> None:
        file["x"] = h5py.ExternalLink("other.h5", "/x")

    for wrong in (beside, virtual, linked):
        cured(w, wrong, lambda file: file.create_dataset("x", data=X))
    w.works("ingest other.h5 e.zarr")


@world(f"{_HDF5}_unfit: install its filter (pip install hdf5plugin), or h5repack -f GZIP=4 {{}} NEW.h5")
def a_filter_of_others(w: World) -> None:
    def wrong(file: h5py.File) -> None:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((5, 4))
        plist.set_filter(32013, h5py.h5z.FLAG_OPTIONAL, (1, 2))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(X.shape), plist)

    cured(w, wrong, lambda file: file.create_dataset("x", data=X, compression="gzip"))


def metadata(**changes: Any) -> None:
    path = Path("x/zarr.json") if Path("x/zarr.json").exists() else Path("x/.zarray")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@world(f"{_ARRAY}StoredArray.check_claim: memory={{}}")
def a_chunk_larger_than_memory(w: World) -> None:
    zarr.create_array("x", data=np.ones((60, 10), "i1"), chunks=(60, 10))
    grid = {"name": "regular", "configuration": {"chunk_shape": [1000, 10_000]}}
    metadata(chunk_grid=grid)
    w.refuses("ingest x d.zarr --memory 20MB")
    zarr.create_array("x", data=np.ones((60, 10), "i1"), chunks=(1000, 10_000), overwrite=True)
    w.typed("ingest x d.zarr --memory 20MB")


@world(
    f"{_ARRAY}StoredArray.check_claim: write it again with its true shape",
    f"{_ARRAY}StoredArray.check_claim: write it again with larger chunks, or memory={{}}",
    f"{_ZARR}UnreadableArray.__init__: write or copy the array again",
    f"{_ZARR}_unfit: store numbers of a plain dtype",
    f"{_ZARR}_unfit: write it again with one of them: zarr's create_array, of the data that it reads",
)
def metadata_of_zarr(w: World) -> None:
    single = {"name": "regular", "configuration": {"chunk_shape": [1]}}
    for changes in ({"shape": [10**15]}, {"shape": [10**8], "chunk_grid": single}, {"codecs": [{"name": "magic"}]}):
        zarr.create_array("x", data=np.ones(60, "i1"), overwrite=True)
        metadata(**changes)
        w.refuses("ingest x d.zarr")
    zarr.create_array("x", data=np.ones(60, "i1"), zarr_format=2, overwrite=True)
    metadata(filters=[{"id": "delta", "dtype": "|i1"}])
    w.refuses("ingest x d.zarr")
    zarr.create_array("x", data=np.array(["a", "b"]), zarr_format=2, overwrite=True)
    w.refuses("ingest x d.zarr")
    zarr.create_array("x", data=np.ones(60, "i1"), overwrite=True)
    w.works("ingest x d.zarr")
