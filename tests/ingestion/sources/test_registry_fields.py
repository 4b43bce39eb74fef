"""Fields made of the names in a source, and the names that no field can have."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamtrain
from streamtrain.cli.main import main
from streamtrain.errors import InputError, UsageError
from streamtrain.ingestion.sources.base import SourceOptions
from streamtrain.ingestion.sources.registry import open_source

IMAGES, LABELS, IDS = np.arange(12, dtype="f4").reshape(6, 2), np.arange(6, dtype="u1") % 3, np.arange(6, dtype="i4")
NAMED: dict[str, Any] = {"images": IMAGES, "labels": LABELS, "ids": IDS}
CHOSEN = {"y": "labels", "x": "images"}


def saved(path: Path, named: dict[str, Any], save: Callable[..., None] = np.savez) -> Path:
    save(path, **named)
    return path


SOURCES: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    ".npz": lambda folder, named: saved(folder / "d.npz", named),
    "compressed .npz": lambda folder, named: saved(folder / "d.npz", named, np.savez_compressed),
    "two .npz": lambda folder, named: [
        saved(folder / "a.npz", {name: values[:4] for name, values in named.items()}),
        saved(folder / "b.npz", {name: values[4:] for name, values in named.items()}),
    ],
    "a dict": lambda folder, named: named,
    "a dict of dask arrays": lambda folder, named: {k: da.from_array(v, chunks=3) for k, v in named.items()},
    "an iterator": lambda folder, named: iter([named]),
    "a list": lambda folder, named: [{k: v[:4] for k, v in named.items()}, {k: v[4:] for k, v in named.items()}],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_fields_are_made_of_what_is_named(tmp_path: Path, kind: str) -> None:
    dataset = streamtrain.ingest(SOURCES[kind](tmp_path, NAMED), tmp_path / "d.zarr", fields=CHOSEN)
    assert [field.name for field in dataset.fields] == ["y", "x"]
    np.testing.assert_array_equal(dataset[:]["x"], IMAGES)
    np.testing.assert_array_equal(dataset[:]["y"], LABELS.astype(np.int64), strict=True)
    assert dataset.n_classes == 3
    assert dataset.manifest.options["fields"] == CHOSEN


@pytest.mark.parametrize("kind", SOURCES)
def test_a_name_that_is_not_there(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"fields names 'image'\. It has images, labels, ids.*did you mean 'images'\?"):
        streamtrain.ingest(SOURCES[kind](tmp_path, NAMED), tmp_path / "d.zarr", fields={"x": "image"})
    assert not (tmp_path / "d.zarr").exists()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("word", ["µ", "count", "_x"])
def test_a_name_that_no_batch_can_have_is_refused_and_the_remedy_works(tmp_path: Path, kind: str, word: str) -> None:
    named = {"x": IMAGES, word: LABELS}
    with pytest.raises(InputError, match=f"field name {word!r} is not usable") as caught:
        streamtrain.ingest(SOURCES[kind](tmp_path, named), tmp_path / "d.zarr")
    assert "fields={" in str(caught.value.fix)
    dataset = streamtrain.ingest(SOURCES[kind](tmp_path, named), tmp_path / "d.zarr", fields={"x": "x", "y": word})
    with streamtrain.StreamLoader(dataset, batch_size=4, memory="16MB", seed=0) as loader:
        assert [sorted(batch._asdict()) for batch in loader] == [["x", "y"]] * 2


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("word", ["class", "None"])
def test_a_word_of_the_language_is_an_item_of_a_batch(tmp_path: Path, kind: str, word: str) -> None:
    dataset = streamtrain.ingest(SOURCES[kind](tmp_path, {"x": IMAGES, word: LABELS}), tmp_path / "d.zarr")
    with streamtrain.StreamLoader(dataset, batch_size=6, memory="16MB", shuffle=False) as loader:
        [batch] = loader
    assert batch[word].tolist() == LABELS.tolist()


@pytest.mark.parametrize("word", keyword.kwlist)
def test_every_word_of_the_language(word: str) -> None:
    assert open_source({word: IMAGES}).fields[0].name == word


@settings(max_examples=30)
@given(name=st.text(st.characters(categories=["L", "Nd", "Pc", "Mn"]), min_size=1, max_size=4))
def test_whatever_is_ingested_can_be_loaded(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("d")
    try:
        dataset = streamtrain.ingest({name: IMAGES}, folder / "d.zarr")
    except InputError:
        return
    with streamtrain.StreamLoader(dataset, batch_size=6, memory="16MB", seed=0) as loader:
        batch = next(iter(loader))
    assert batch[name].shape == (6, 2)
    assert keyword.iskeyword(name) or eval(f"batch.{name}", {"batch": batch}).shape == (6, 2)


@pytest.mark.parametrize("word", ["match", "case", "type", "print", "x2", "größe"])
def test_names_that_are_no_words_of_the_language_are_taken(tmp_path: Path, word: str) -> None:
    assert streamtrain.ingest({word: IMAGES}, tmp_path / "d.zarr").fields[0].name == word


def test_members_of_splits_that_are_not_chosen_may_be_of_any_length(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:2], y_test=LABELS[:2])
    with pytest.raises(InputError, match=r"members differ in rows.*Fix: choose those that belong together: fields="):
        streamtrain.ingest(tmp_path / "mnist.npz", tmp_path / "d.zarr")
    for part, n_rows in (("train", 6), ("test", 2)):
        chosen = {"x": f"x_{part}", "y": f"y_{part}"}
        assert len(streamtrain.ingest(tmp_path / "mnist.npz", tmp_path / part, fields=chosen)) == n_rows


def test_labels_of_their_own_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    np.savez(tmp_path / "y.npz", kind=LABELS, id=IDS)
    with pytest.raises(InputError, match=r"the labels hold several fields: kind, id.*or choose it: fields="):
        streamtrain.ingest(tmp_path / "x.npy", tmp_path / "d.zarr", labels=tmp_path / "y.npz")
    options: dict[str, Any] = {"labels": tmp_path / "y.npz", "fields": {"y": "kind"}}
    dataset = streamtrain.ingest(tmp_path / "x.npy", tmp_path / "d.zarr", **options)
    np.testing.assert_array_equal(dataset[:]["y"], LABELS)
    np.savez(tmp_path / "x.npz", **NAMED)
    options["fields"] = {"x": "images", "y": "kind"}
    assert streamtrain.ingest(tmp_path / "x.npz", tmp_path / "e.zarr", **options).id == dataset.id


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.parquet", "x-idx2-ubyte", "x.bin"])
def test_files_without_names_take_no_fields(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(
        b"PAR1" if name == "x.parquet" else b"\x93NUMPY" if name == "x.npy" else b"a,b\n1,2\n"
    )
    with pytest.raises(UsageError, match=rf"{re.escape(name)}: fields does not apply to .* files.*label_column="):
        open_source(tmp_path / name, options=SourceOptions(fields=CHOSEN))


def test_lone_arrays_and_foreign_sources_take_no_fields() -> None:
    for source in (IMAGES, open_source(IMAGES)):
        with pytest.raises(UsageError, match="fields does not apply to a"):
            open_source(source, options=SourceOptions(fields=CHOSEN))


@pytest.mark.parametrize("fields", [["x"], "x=images", {"x": 3}, {1: "x"}, {}])
def test_what_is_no_choice(tmp_path: Path, fields: Any) -> None:
    with pytest.raises(UsageError, match="fields"):
        streamtrain.ingest(NAMED, tmp_path / "d.zarr", fields=fields)


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", **NAMED, **{"µ": IDS})
    source, dest = str(tmp_path / "d.npz"), str(tmp_path / "d.zarr")
    assert main(["ingest", source, dest]) == 3
    assert "Python takes batch.µ for batch.μ, another name" in capsys.readouterr().err
    for wrong in ("x", "x=", "=images", "x=images,x=labels", ","):
        assert main(["ingest", source, dest, "--fields", wrong]) == 2, wrong
    assert main(["ingest", source, dest, "--fields", "x=images, y=µ"]) == 0
    assert streamtrain.open(dest)[:]["y"].tolist() == IDS.tolist()
    assert main(["ingest", source, dest, "--fields", "x=images,y=µ", "--append"]) == 0
    assert len(streamtrain.open(dest)) == 12
