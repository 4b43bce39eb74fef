"""Messages of the first hour, row by row: each says what is wrong, and its advice, followed, works."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr
from open_file_limits import at_most, nothing_left
from PIL import Image
from shown import typed, works
from torch import nn

import streamtrain as st

pytestmark = pytest.mark.usefixtures("one_thread", "in_own_folder")

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
OF_PYTHON = "Fix: in Python, "


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


def refused(line: str, code: int = 3) -> str:
    """Type a command that is refused; return what it says."""
    found, _, err = typed(line)
    assert found == code, err
    return err


def accepted(line: str) -> str:
    """Type a command that works; return what it prints."""
    code, out, err = typed(line)
    assert code == 0, err
    return out + err


def flights() -> str:
    write(
        "t.csv",
        "a,carrier,when,delay\n"
        + "".join(f"{i},{'ABC'[i % 3]},2020-01-0{i % 9 + 1},{'NA' if i % 7 == 0 else i}\n" for i in range(60)),
    )
    return "ingest t.csv d.zarr --label-column delay"


def test_all_columns_that_are_unfit_and_one_command() -> None:
    line = flights()
    err = refused(line)
    for told in ("carrier: 3 texts", "when: dates", "delay: 9 labels missing"):
        assert told in err
    options = re.search(r"Fix: --auto, which takes the table as it is; or by hand, (.*?);", err)
    assert options is not None
    accepted(f"{line} {options[1]}")
    with pytest.raises(st.InputError, match="carrier: 3 texts; when: dates; delay: 9 labels missing") as caught:
        st.ingest("t.csv", "e.zarr", label_column="delay")
    assert "categorical='carrier'" in str(caught.value) or "categorical=" in str(caught.value)


@pytest.mark.parametrize("mark", [";", "|"])
def test_the_delimiter_is_found_and_told(mark: str) -> None:
    write("s.csv", "".join(f"{mark.join(row)}\n" for row in (["a", "b", "c"], ["1", "2", "0"], ["3", "4", "1"])))
    assert f"the delimiter is {mark!r}" in accepted("ingest s.csv d.zarr --label-column c")
    err = refused("ingest s.csv e.zarr --label-column c --delimiter ,")
    [option] = re.findall(r"Fix: (--delimiter .*)\.$", err.strip())
    accepted(f"ingest s.csv e.zarr --label-column c {option}")
    assert st.ingest("s.csv", "p.zarr", label_column="c")[:]["x"].tolist() == [[1, 2], [3, 4]]


def test_the_mark_of_utf_16() -> None:
    Path("u.csv").write_bytes("a,b\n1,0\n2,1\n".encode("utf-16"))
    err = refused("ingest u.csv d.zarr --label-column b")
    assert "Fix: --encoding utf-16." in err
    assert "latin" not in err
    accepted("ingest u.csv d.zarr --label-column b --encoding utf-16")


def test_labels_called_na() -> None:
    write("n.csv", 'a,b\n1,x\n2,NA\n3,"NA"\n')
    err = refused("ingest n.csv d.zarr --label-column b")
    assert "label is empty" in err
    [option] = re.findall(r"; or (--na-values '')", err)
    assert "0 = NA, 1 = x" in accepted(f"ingest n.csv d.zarr --label-column b {option}")
    assert "0 = NA, 1 = x" in accepted("ingest n.csv e.zarr --label-column b --classes NA,x")
    write("q.csv", 'a,b\n1,x\n2,"NA"\n')
    assert st.ingest("q.csv", "q.zarr", label_column="b").classes == ("NA", "x")


def test_labels_with_blanks_around_them() -> None:
    write("t.csv", 'a,b\n1," dog"\n2,dog\n3,cat\n4,"dog "\n')
    said = accepted("ingest t.csv d.zarr --label-column b")
    assert "warning: 2 class names stripped of blanks: ' dog' is 'dog', 'dog ' is 'dog'" in said
    assert st.open("d.zarr")[:]["y"].tolist() == [1, 1, 0, 1]
    accepted("ingest t.csv e.zarr --label-column b --classes 'cat,dog, dog,dog '")
    with pytest.warns(st.StreamtrainWarning, match="1 class name stripped"):
        assert st.ingest(X[:2], "f.zarr", labels=np.array(["a", " a"])).classes == ("a",)


def test_what_is_missing_in_arrays_and_parquet() -> None:
    with pytest.raises(st.InputError, match=r"x\.filled\(0\)"):
        st.ingest({"x": np.ma.masked_array(X, X > 1), "y": Y}, "d.zarr")
    st.ingest({"x": np.ma.masked_array(X, X > 1).filled(0), "y": Y}, "d.zarr")
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0], "k": ["u", "", "v"]}), "e.parquet")
    assert "e.parquet row 1: 1 label is" in refused("ingest e.parquet e.zarr --label-column k")
    accepted("ingest e.parquet e.zarr --label-column k --drop-unlabelled")
    pd.DataFrame({"a": [1.0, 2.0, 3.0], "y": [0, 1, 0]}, index=[5, 6, 7]).to_parquet("i.parquet")
    assert "left out __index_level_0__" in accepted("ingest i.parquet i.zarr --label-column y")
    accepted("ingest i.parquet j.zarr --label-column y --columns a,__index_level_0__")


def image(name: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(name)


def archive(name: str, member: str, content: str = "a,b\n1,2\n") -> None:
    with zipfile.ZipFile(name, "w") as file:
        file.writestr(member, content)


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "i.jpg": (lambda: image("i.jpg"), "a JPEG image"),
    "i.png": (lambda: image("i.png"), "a PNG image"),
    "i.webp": (lambda: image("i.webp"), "a WebP image"),
    "i.bmp": (lambda: image("i.bmp"), "a BMP image"),
    "i.tif": (lambda: image("i.tif"), "a TIFF image"),
    "flat": (lambda: image("flat/0.bmp"), "a BMP image"),
    "a.zip": (lambda: archive("a.zip", "a.csv"), "a zip archive"),
    "n.zip": (lambda: np.savez("n", x=X) or Path("n.npz").rename("n.zip"), "an .npz archive"),  # type: ignore[func-returns-value]
    "a.xlsx": (lambda: archive("a.xlsx", "xl/workbook.xml"), "a spreadsheet"),
    "a.pt": (lambda: torch.save(torch.ones(3), "a.pt"), "a file of torch.save"),
    "a.nc": (lambda: xr.Dataset({"x": (("t", "k"), X)}).to_netcdf("a.nc", format="NETCDF3_64BIT"), "NetCDF 3"),
    "a.pkl": (lambda: Path("a.pkl").write_bytes(b"\x80\x04\x95" + bytes(9)), "a Python pickle"),
    "a.json": (lambda: write("a.json", '[{"a": 1, "b": 0}]'), "JSON"),
    "a.jsonl": (lambda: write("a.jsonl", '{"a": 1, "b": 0}\n'), "lines of JSON"),
    "a.txt": (lambda: write("a.txt", "a,b\n1,0\n"), "text"),
    "a.mat": (lambda: write("a.mat", "MATLAB 5.0 MAT-file"), "a MATLAB file"),
    "a.arff": (lambda: write("a.arff", "@relation a\n@attribute b numeric\n@data\n1\n"), "ARFF"),
    "a.feather": (lambda: pyarrow.feather.write_feather(pa.table({"a": [1.0]}), "a.feather"), "Arrow IPC"),
    "a.csv.gz": (lambda: Path("a.csv.gz").write_bytes(gzip.compress(b"a,b\n1,0\n")), "gzip data"),
    "a.sqlite": (lambda: write("a.sqlite", "SQLite format 3\0"), "a SQLite database"),
    "a.tfrecord": (lambda: write("a.tfrecord", "x"), "TFRecord"),
}
RUN = {"i.jpg": "x.npy", "i.png": "x.npy", "flat": "x.npy", "a.pt": "a.npy", "a.json": "a.csv", "a.jsonl": "a.csv"}
RUN |= {"a.nc": "a.nc4", "a.arff": "a.csv", "a.feather": "data.zarr"}
"""Kinds whose recipe runs with what the tests have -> what it makes."""


@pytest.mark.parametrize("name", KINDS)
def test_a_file_without_a_reader_is_named_with_a_recipe(name: str) -> None:
    make, kind = KINDS[name]
    make()
    err = refused(f"ingest {name} d.zarr").strip()
    assert f"It looks like {kind}." in err
    assert "raw binary" not in err
    if name not in RUN:
        return
    works(err.partition(OF_PYTHON)[2].removesuffix("."))
    made = RUN[name]
    accepted(f"ingest {made} d.zarr" + (" --block 1KB" if made == "data.zarr" else ""))


def test_a_folder_of_classes() -> None:
    for name in ("pets/cat/1.bmp", "pets/dog/2.bmp"):
        image(name)
    err = refused("ingest pets d.zarr").strip()
    assert "a folder of classes, 2 in all, each of images" in err
    works(err.partition(OF_PYTHON)[2].removesuffix("."))
    dataset = st.open("data.zarr")
    assert (dataset.classes, dataset[:]["y"].tolist(), dataset.fields[0].shape) == (("cat", "dog"), [0, 1], (64, 64, 3))


def test_a_zarr_without_arrays() -> None:
    Path("z.zarr/a").mkdir(parents=True)
    write("z.zarr/zarr.json", '{"zarr_format": 3, "node_type": "group"}')
    assert "it holds no arrays" in refused("ingest z.zarr d.zarr")


def idx(name: str, values: np.ndarray[Any, Any]) -> None:
    shape = b"".join(struct.pack(">I", n) for n in values.shape)
    Path(name).write_bytes(gzip.compress(bytes([0, 0, 8, values.ndim]) + shape + values.tobytes()))


def test_the_four_files_of_mnist() -> None:
    Path("mnist").mkdir()
    for name, n in (("train", 60), ("t10k", 20)):
        idx(f"mnist/{name}-images-idx3-ubyte.gz", np.zeros((n, 4, 4), np.uint8))
        idx(f"mnist/{name}-labels-idx1-ubyte.gz", (np.arange(n) % 3).astype(np.uint8))
    err = refused("ingest mnist d.zarr")
    assert "2 files of samples and 2 files of labels" in err
    [(images, option)] = re.findall(r"Fix: give (\S+) with (--labels \S+)\.$", err.strip())
    assert "60 samples" in accepted(f"ingest {images} d.zarr {option}")
    with pytest.raises(st.InputError, match=r"Fix: give (\S+) with labels='\S+'"):
        st.ingest("mnist", "e.zarr")


TRAIN = "train d.zarr --model linear --epochs 1 --memory 16MB --out run"


def test_fields_of_other_names_and_no_labels() -> None:
    np.savez("q.npz", images=X, labels=Y)
    accepted("ingest q.npz d.zarr")
    err = refused(TRAIN, 2)
    [(train, ingest)] = re.findall(r"learn from: (.*); or ingest with (.*)\.", err)
    accepted(f"{TRAIN} {train}")
    accepted(f"ingest q.npz d.zarr {ingest} --overwrite")
    accepted(f"{TRAIN}2")
    with pytest.raises(st.UnknownName, match=r"Trainer\(inputs='images', target='labels', \.\.\.\)"):
        st.Trainer(nn.Linear(4, 3), loss="cross_entropy").fit(st.ingest("q.npz", "e.zarr"), max_epochs=1, memory="16MB")
    np.save("x.npy", X), np.save("y.npy", Y)
    accepted("ingest x.npy d.zarr --overwrite")
    assert "the dataset has no labels" in refused(f"{TRAIN}3", 2)
    accepted("ingest x.npy d.zarr --labels y.npy --overwrite")
    accepted(f"{TRAIN}3")


def test_evaluate_on_what_is_not_there_or_other_data() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    st.ingest({"x": X[:, :3], "y": Y}, "three.zarr")
    accepted(TRAIN)
    err = refused("evaluate rnu d.zarr", 6)
    assert "no such folder" in err
    assert "config.json" not in err
    assert "Fix: did you mean 'run'?" in err
    accepted("evaluate run d.zarr")
    err = refused("evaluate run three.zarr", 2)
    assert "float32 (3,)" in err
    assert "float32 (4,)" in err
    assert "did you mean 'd.zarr'" in refused("evaluate run dd.zarr", 4)


def test_a_run_that_diverges_names_a_lower_rate() -> None:
    st.ingest({"x": X * 1e4, "y": X[:, 0] * 1e4}, "d.zarr")
    words = "--optimizer sgd --lr 10 --normalize none --normalize-target none"
    err = refused(f"{TRAIN} --max-steps 20 {words}".replace(" --epochs 1", ""), 8)
    assert re.search(r"step \d+: the loss is", err)
    assert "--lr" in err


def test_a_comparison_that_diverges_names_the_step_and_a_lower_rate() -> None:
    data = st.ingest({"x": X * 1e4, "y": X[:, 0] * 1e4}, "d.zarr")
    words = "--model linear --rules batch --optimizers sgd --epochs 3 --normalize none --memory 16MB"
    said = accepted(f"compare d.zarr {words} --lr 10 --out c")
    assert re.search(r"diverged batch, sgd: after epoch \d, step \d: the loss is \w+\.", said), said
    [option] = re.findall(r"(--lr [\d.e-]+)\.\n", said)
    assert "diverged" not in accepted(f"compare d.zarr {words.replace(' 3', ' 1')} {option} --out e")
    with pytest.raises(st.DivergedError, match=r"step \d+: the loss is .* Fix: .*lr="):
        st.Trainer(nn.Linear(4, 1), loss="mse", optimizer="sgd", lr=10, normalize=None, device="cpu").fit(
            data, max_epochs=3, memory="16MB"
        )


def test_a_budget_too_small() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    err = refused("train d.zarr --model linear --epochs 1 --max-memory 50MB", 5)
    for term in ("libraries", "weights, gradients and the optimizer's state", "one step", "allocators"):
        assert term in err
    err = refused("train d.zarr --val d.zarr --model linear --epochs 1 --memory 4MB", 5)
    assert "Validation data gets 1/4 of it" in err
    [option] = re.findall(r"Fix: (--memory \w+)\.", err)
    accepted(f"train d.zarr --val d.zarr --model linear --epochs 1 {option}")


def test_a_last_batch_of_one_under_batch_norm() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    write(
        "net.py",
        "from torch import nn\ndef net(input_shape, n_outputs):\n"
        "    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, n_outputs))\n",
    )
    line = "train d.zarr --model net.py:net --epochs 1 --memory 16MB"
    err = refused(f"{line} --batch-size 59", 2)
    [other] = re.findall(r"Fix: --drop-last, or (--batch-size \d+)", err)
    accepted(f"{line} --batch-size 59 --drop-last")
    accepted(f"{line} {other}")


def test_a_run_under_a_schedule_that_has_an_end() -> None:
    st.ingest({"x": X, "y": Y}, "d.zarr")
    accepted(f"{TRAIN} --schedule cosine")
    longer = f"{TRAIN} --schedule cosine --resume".replace("--epochs 1", "--epochs 2")
    err = refused(longer, 6)
    [option] = re.findall(r"(--schedule-option T_max=\d+)", err)
    accepted(f"{longer} {option}")


def test_what_works_without_a_word() -> None:
    data = st.ingest({"x": X, "y": Y}, "d.zarr")
    models = [nn.Linear(4, 3).double(), nn.LazyLinear(3)]
    for model in models:
        trainer = st.Trainer(model, loss="cross_entropy", device="cpu", normalize="auto")
        trainer.fit(data, max_epochs=1, memory="16MB")
        with torch.no_grad():
            assert trainer.evaluate(data).n_samples == 60


def test_fewer_open_files_than_shards_are_no_damage() -> None:
    st.ingest({"x": X.repeat(40, 0), "y": Y.repeat(40)}, "d.zarr", block="512B", shard="1KB")
    accepted(TRAIN)
    with at_most(16):
        accepted("evaluate run d.zarr")
        accepted("verify d.zarr --full")
    with at_most(0), nothing_left():
        for command in ("evaluate run d.zarr", "verify d.zarr --full"):
            err = refused(command, 5)
            assert "ulimit -n" in err
            assert "damaged" not in err
        with pytest.raises(st.StreamtrainError, match="ulimit -n") as caught:
            st.verify("d.zarr")
    assert caught.value.exit_code == 5


def test_slices_of_a_run_add_up() -> None:
    data = st.ingest({"x": X, "y": Y}, "d.zarr")
    line = "train d.zarr --model linear --batch-size 8 --memory 16MB --out run"
    assert re.search(r"\n +1 +5 .*partial\n", accepted(f"{line} --max-steps 5"))
    said = accepted(f"{line} --max-steps 10 --resume")
    assert re.search(r"\n +1 +8 .*\n +2 +10 .*partial\n", said), "the cut epoch goes on"
    trainer = st.Trainer(nn.Linear(4, 3), loss="cross_entropy", device="cpu")
    with st.StreamLoader(data, batch_size=8, memory="16MB") as loader:
        assert trainer.fit(loader, max_steps=5).counts.n_steps == 5
        assert trainer.fit(loader, max_steps=10).counts.n_steps == 10


def test_the_terms_of_a_plan_are_explained() -> None:
    st.ingest({"x": X.repeat(40, 0), "y": Y.repeat(40)}, "d.zarr", block="2KB")
    lines = accepted("plan d.zarr --batch-size 32").splitlines()
    terms = [line for line in lines if line.startswith("         ") and re.search(r"\d (B|KB|MB) ", line)]
    assert len(terms) >= 6
    assert all(re.search(r"\d (B|KB|MB)  [a-z ]{10,}", line) for line in terms), terms
    assert "1 blocks" not in "\n".join(lines)
    assert "as good as a full reshuffle" in "\n".join(lines)
