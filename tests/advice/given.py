"""Worlds of data of other kinds: torch's datasets and loaders, stored datasets, files that nothing here reads."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import streamtrain as st
from tests.advice.sources import ingest
from tests.advice.world import World, X, Y, world

_TORCH = "ingestion/sources/indexed/torch_data.py:"
_STORED = "ingestion/sources/indexed/stored.py:"
_KINDS = "ingestion/sources/recognition/"


class Samples(torch.utils.data.Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> Any:
        return self.samples[row]


class Stream(torch.utils.data.IterableDataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


@world(
    f"{_TORCH}SampleSource.__init__: give at least one",
    f"{_TORCH}_named: fields={{'x': 0, 'y': 1}} takes the first two",
    f"{_TORCH}_check_like: give every sample one dtype and shape",
    f"{_TORCH}SampleSource._put: give every sample one dtype and shape",
    f"{_TORCH}_array: give the dataset transform=numpy.asarray, after resizing where sizes differ",
)
def torch_datasets(w: World) -> None:
    image = Image.new("RGB", (4, 4))
    for wrong in ((), ((1.0, 2, 3),), ((1.0, 2), (1, 2)), ((image, 0),)):
        w.refused(ingest, Samples(*wrong))
    w.refused(ingest, Stream((X[0], 1), (X[1, :2], 2)))
    ingest(Stream((X[0], 1), (X[1], 2)), "4.zarr")
    ingest(Samples((1.0, 2, 3)), "1.zarr", fields={"x": 0, "y": 1})
    ingest(Samples((1.0, 2), (1.0, 2)), "2.zarr")
    ingest(Samples((np.asarray(image), 0)), "3.zarr")


@world(
    f"{_TORCH}_check_in_order: make it with shuffle=False and no sampler; or give loader.dataset",
    f"{_TORCH}_check_in_order: make it with drop_last=False",
)
def data_loaders(w: World) -> None:
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    w.refused(ingest, DataLoader(data, batch_size=7, shuffle=True))
    w.refused(ingest, DataLoader(data, batch_size=7, drop_last=True))
    for number, right in enumerate((DataLoader(data, batch_size=7), data)):
        ingest(right, f"{number}.zarr")
    three = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y), torch.from_numpy(Y)))
    w.refused(ingest, three)
    ingest(three, "3.zarr", fields={"x": 0, "y": 1})


@world(
    f"{_STORED}StoredSource.__init__: leave fields= out",
    f"{_STORED}open_stored: give the files that they were made of as a list, or ingest each by itself",
)
def stored_datasets(w: World) -> None:
    for name in ("a.csv", "b.csv"):
        Path(name).write_text("k,a,y\n" + "u,1,0\nv,2,1\n" * 3)
    data = st.ingest("a.csv", "a.zarr", label_column="y", categorical="k", progress=False)
    w.refused(ingest, data, fields={"x": "x"})
    w.refused(ingest, [data, data])
    ingest(data, "b.zarr")
    ingest(["a.csv", "b.csv"], "c.zarr", label_column="y", categorical="k")


@world(f"{_KINDS}folders.py:check_no_labels_among: give {{}} with labels={{}}")
def features_beside_their_labels(w: World) -> None:
    Path("both").mkdir()
    np.save("both/x.npy", X)
    np.save("both/y.npy", Y)
    assert w.refused(ingest, "both") == "give both/x.npy with labels='both/y.npy'"
    ingest("both/x.npy", labels="both/y.npy")


@world(f"{_KINDS}folders.py:folder_of_folders: give the folders of files as a list: {{}}")
def folders_of_files(w: World) -> None:
    for name in ("all/a", "all/b"):
        Path(name).mkdir(parents=True)
        np.save(f"{name}/x.npy", X)
    assert w.refused(ingest, "all") == "give the folders of files as a list: 'all/a' 'all/b'"
    ingest(["all/a", "all/b"])


@world(
    f"{_KINDS}folders.py:_files_and_folders: name the files: {{}}",
    f"{_KINDS}folders.py:folder_of_folders: give the files that they were made of",
)
def a_folder_of_files_and_a_dataset(w: World) -> None:
    Path("in").mkdir()
    for name in ("in/a.csv", "in/b.csv"):
        Path(name).write_text("a,b\n1,2\n")
    w.works("ingest in/a.csv in/b.csv in/both")
    assert w.refuses("ingest in d.zarr") == "name the files: in/*.csv"
    w.works("ingest in/a.csv in/b.csv d.zarr")
    Path("only").mkdir()
    Path("d.zarr").rename("only/d.zarr")
    w.refuses("ingest only e.zarr")
    w.works("ingest in/a.csv in/b.csv e.zarr")


@world("store/reads/drawn.py:_warn_of_draws: a StreamLoader, which shuffles and reads each block about once")
def a_shuffled_data_loader(w: World) -> None:
    data = w.dataset()
    w.warned(lambda: list(DataLoader(data, batch_size=8, shuffle=True)))  # type: ignore[arg-type]
    with st.StreamLoader(data, memory="16MB") as loader:
        assert sum(len(batch.y) for batch in loader) == 60


@world("loader/loader_state.py:checked_state: make it with seed={}")
def a_state_of_another_seed(w: World) -> None:
    data = w.dataset()
    with st.StreamLoader(data, memory="16MB", seed=3) as loader:
        state = loader.state_dict()
    with st.StreamLoader(data, memory="16MB") as loader:
        assert w.refused(loader.load_state_dict, state) == "make it with seed=3"
    with st.StreamLoader(data, memory="16MB", seed=3) as loader:
        loader.load_state_dict(state)


@world(
    "ingestion/sources/recognition/formats.py:_unknown: convert it to one of those",
)
def a_file_of_a_known_kind(w: World) -> None:
    with zipfile.ZipFile("a.docx", "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    w.refused(ingest, "a.docx")
    np.save("a.npy", X)
    ingest("a.npy")
