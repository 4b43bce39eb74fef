"""Faults of inputs, through the command line: the exit code, and a message that says what, where and the fix.

Numbers are the rows of the list of bad inputs that the design keeps; rows whose commands are tested at length elsewhere
have one case here. No traceback is shown, and a refused ingest leaves nothing that opens.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main

Make = Callable[[Path], object]
X = np.arange(60, dtype=np.float32).reshape(20, 3)


def text(name: str, content: str) -> Make:
    return lambda folder: (folder / name).write_text(content)


def npy(name: str, array: Any, **options: Any) -> Make:
    return lambda folder: np.save(folder / name, array, **options)


def table(name: str, **columns: Any) -> Make:
    def make(folder: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), folder / name)

    return make


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def cut(make: Make, name: str, n_bytes: int) -> Make:
    def made(folder: Path) -> None:
        make(folder)
        os.truncate(folder / name, (folder / name).stat().st_size - n_bytes)

    return made


def huge_header(folder: Path) -> None:
    with (folder / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.save(member, np.zeros(100_000_000, np.uint8))


def twice(folder: Path) -> None:
    np.savez(folder / "x.npz", x=X)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(folder / "x.npz", "a") as archive:
        archive.writestr("x.npy", b"")


IDX = bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9)

INGEST: dict[str, tuple[Make, list[str], int, str]] = {
    "1 a typo": (npy("images.npy", X), ["imags.npy"], 3, "did you mean '.*images.npy'"),
    "2 nothing in a folder": (lambda folder: (folder / "f").mkdir(), ["f"], 3, "f: "),
    "3 an empty file": (text("x.npy", ""), ["x.npy"], 3, r"x\.npy: the file is empty \(0 bytes\)"),
    "4 no samples": (npy("x.npy", X[:0]), ["x.npy"], 3, r"shape \(0, 3\) holds no samples"),
    "4 a table of a header": (text("x.csv", "a,b\n"), ["x.csv"], 3, r"x\.csv"),
    "6 a picture named .npy": (text("x.npy", "\x89PNG\r\n"), ["x.npy"], 3, r"x\.npy"),
    "7 a short line": (text("x.csv", "a,b\n1,2\n3\n"), ["x.csv"], 3, r"x\.csv:3: 1 values, expected 2"),
    "8 no header": (text("x.csv", "5.1,2\n3,4\n"), ["x.csv"], 3, r"x\.csv:1: .*header is missing"),
    "8 a name twice": (text("x.csv", "a,a\n1,2\n"), ["x.csv"], 3, r"x\.csv.*a"),
    "9 no such label": (
        text("x.csv", "a,b\n1,2\n"),
        ["x.csv", "--label-column", "c"],
        3,
        "no label column 'c'. It has a, b",
    ),
    "10 text among numbers": (text("x.csv", "a,b\n1,2\n3,oops\n"), ["x.csv"], 3, r"x\.csv:3.*oops"),
    "11 a label is missing": (text("x.csv", "a,b\n1,2\n3,\n"), ["x.csv", "--label-column", "b"], 3, r"x\.csv:3"),
    "12 not a number": (npy("x.npy", np.where(X == 10, np.nan, X)), ["x.npy"], 3, r"x\.npy row 3.*1 NaN"),
    "12 infinite": (text("x.csv", "a,b\n1,2\n3,inf\n"), ["x.csv"], 3, r"x\.csv:3: .*column 'b'"),
    "13 half a class": (
        text("x.csv", "a,b\n1,0\n3,1.5\n"),
        ["x.csv", "--label-column", "b", "--classes", "2"],
        3,
        r"x\.csv:3: label 1\.5 is not one of the 2 classes 0 to 1\. .*Fix: correct it",
    ),
    "14 a negative label": (
        both(npy("x.npy", X), npy("y.npy", np.arange(20) - 1)),
        ["x.npy", "--labels", "y.npy", "--classes", "19"],
        3,
        r"y\.npy row 0: label -1 is not one of the 19 classes 0 to 18",
    ),
    "14 a class too many": (
        both(npy("x.npy", X), npy("y.npy", np.arange(20))),
        ["x.npy", "--labels", "y.npy", "--classes", "10"],
        3,
        r"y\.npy row 10: label 10 is not one of the 10 classes 0 to 9",
    ),
    "15 a class that was not named": (
        text("x.csv", "a,b\n1,cat\n3,cow\n"),
        ["x.csv", "--label-column", "b", "--classes", "dog,cat"],
        3,
        r"x\.csv: labels that are not among the classes: 'cow'\. The classes are 'dog', 'cat'\. Fix: ",
    ),
    "14 no class at all": (npy("x.npy", X), ["x.npy", "--classes", "-3"], 2, "classes are -3"),
    "18 Latin-1": (lambda folder: (folder / "x.csv").write_bytes(b"a,b\n1,\xe9\n"), ["x.csv"], 3, r"byte 6 .*iconv"),
    "19 the mark of UTF-16": (
        lambda folder: (folder / "x.csv").write_bytes("a,b\n1,2\n".encode("utf-16")),
        ["x.csv"],
        3,
        "--encoding utf-16",
    ),
    "19 a quote without end": (text("x.csv", 'a,b\n1,"2\n' + "3,4\n" * 200_000), ["x.csv"], 3, "close the quote"),
    "20 a short .npy": (cut(npy("x.npy", X), "x.npy", 8), ["x.npy"], 3, "truncated: 360 bytes found, 368 expected"),
    "21 ten to the fifteenth": (huge_header, ["x.npy"], 3, r"truncated: .*8\.00|claims"),
    "23 complex": (npy("x.npy", X.astype(complex)), ["x.npy"], 3, "dtype complex128 is not supported"),
    "23 a structure": (npy("x.npy", np.zeros(3, "i4,f4")), ["x.npy"], 3, "is not supported"),
    "23 dates": (npy("x.npy", np.zeros(3, "M8[s]")), ["x.npy"], 3, "is not supported"),
    "24 no axis": (npy("x.npy", np.float32(1)), ["x.npy"], 3, "a 0-d array has no axis of samples"),
    "25 shapes differ": (both(npy("a.npy", X), npy("b.npy", X[:, :2])), ["a.npy", "b.npy"], 3, r"b\.npy"),
    "26 counts differ": (both(npy("x.npy", X), npy("y.npy", np.arange(9))), ["x.npy", "--labels", "y.npy"], 3, "20.*9"),
    "27 a bomb": (bomb, ["x.npz"], 3, "Only a decompression bomb"),
    "27 a member twice": (twice, ["x.npz"], 3, "member 'x.npy' is there twice"),
    "28 a short Parquet": (cut(table("x.parquet", a=[1.0, 2.0]), "x.parquet", 6), ["x.parquet"], 3, "data is damaged"),
    "29 lists": (table("x.parquet", a=[[1], [2, 3]]), ["x.parquet"], 3, "column 'a' is list.*not supported"),
    "30 schemas differ": (
        both(table("a.parquet", a=[1.0]), table("b.parquet", b=[1.0])),
        ["a.parquet", "b.parquet"],
        3,
        r"b\.parquet",
    ),
    "43 another magic": (
        lambda folder: (folder / "x-idx1-ubyte").write_bytes(b"\x01" + IDX[1:]),
        ["x-idx1-ubyte"],
        3,
        "x-idx1",
    ),
    "43 a short idx": (
        lambda folder: (folder / "x-idx1-ubyte").write_bytes(IDX[:-1]),
        ["x-idx1-ubyte"],
        3,
        "truncated: 16 bytes",
    ),
    "43 a short gzip": (
        lambda folder: (folder / "x-idx1-ubyte.gz").write_bytes(gzip.compress(IDX)[:-9]),
        ["x-idx1-ubyte.gz"],
        3,
        "damaged|truncated",
    ),
    "51 given twice": (npy("x.npy", X), ["x.npy", "x.npy"], 3, "the same file is given twice"),
    "52 a pipe": (lambda folder: os.mkfifo(folder / "x.npy"), ["x.npy"], 2, "x.npy: a pipe or device"),
    "54 there already": (both(npy("x.npy", X), lambda folder: (folder / "out").mkdir()), ["x.npy"], 2, "out"),
    "60 a block of nothing": (npy("x.npy", X), ["x.npy", "--block", "0"], 2, "block"),
    "60 a sample larger than the budget": (npy("x.npy", np.zeros((2, 500_000))), ["x.npy", "--memory", "1MB"], 5, "MB"),
    "62 an unknown unit": (npy("x.npy", X), ["x.npy", "--memory", "4X"], 2, "4X"),
}


@pytest.mark.parametrize("name", INGEST)
def test_ingest(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, words, code, match = INGEST[name]
    make(tmp_path)
    out = tmp_path / "out"
    paths = [str(tmp_path / word) if "." in word or "-idx" in word or word == "f" else word for word in words]
    options = paths.index(next((word for word in paths if word.startswith("--")), paths[-1]))
    places = len(paths) if not paths[options].startswith("--") else options
    assert main(["ingest", *paths[:places], str(out), *paths[places:]]) == code
    _is_an_error(capsys.readouterr(), match)
    with pytest.raises(streamtrain.DatasetError):
        streamtrain.open(out)


def test_55_a_folder_that_is_not_ours_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", X)
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    for words in ([], ["--overwrite"]):
        assert main(["ingest", str(tmp_path / "x.npy"), str(home), *words]) == 2
        _is_an_error(capsys.readouterr(), "something that is not a dataset exists there")
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


def test_53_a_name_of_two_lines_is_kept_as_it_is(tmp_path: Path) -> None:
    name = tmp_path / "a\nb\u00e9.npy"
    np.save(name, X)
    assert main(["ingest", str(name), str(tmp_path / "out"), "--json"]) == 0
    assert streamtrain.open(tmp_path / "out").manifest.sources[0]["path"] == str(name)


def _is_an_error(captured: Any, match: str) -> None:
    assert captured.out == ""
    assert captured.err.lstrip().splitlines()[-1]
    assert "error: " in captured.err
    assert re.search(match, captured.err, re.DOTALL), captured.err
    assert "Traceback" not in captured.err
    assert "a bug in streamtrain" not in captured.err


TRAIN: dict[str, tuple[list[str], int, str]] = {
    "76 model": (["--model", "lineer"], 2, "did you mean 'linear'|linear"),
    "76 optimizer": (["--optimizer", "adm"], 2, "did you mean 'adam'"),
    "76 loss": (["--loss", "cross"], 2, "cross_entropy"),
    "77 no such file": (["--model", "nothing.py:make"], 2, r"nothing\.py"),
    "77 not imported": (["--model", "{tmp}/broken.py:make"], 2, r"broken\.py cannot be imported: NameError"),
    "77 no module": (["--model", "{tmp}/three.py:make"], 2, r"three\.py:make returned int, not a torch\.nn\.Module"),
    "78 no images": (["--model", "cnn"], 2, r"a cnn needs images; a sample has the shape \(3,\)"),
    "79 a loss for two": (["--loss", "bce_with_logits"], 2, "bce_with_logits of 3 whole numbers from 0 to 2"),
    "121 a loss of another task": (["--loss", "mse", "--task", "classification"], 2, "mse is one of regression"),
    "80 batch of none": (["--batch-size", "0"], 2, "batch_size is 0"),
    "80 no number": (["--batch-size", "2.5"], 2, r"2\.5"),
    "81 no batch": (["--batch-size", "101", "--drop-last"], 2, "0 batches: batch_size is 101"),
    "84 a small budget": (["--memory", "2KB"], 5, "memory"),
    "86 lr": (["--lr", "0"], 2, "lr"),
    "86 nan": (["--lr", "nan"], 2, "lr"),
    "86 betas": (["--betas", "1.5,2"], 2, "betas|beta"),
    "86 epochs": (["--epochs", "-1"], 2, "max_epochs is -1"),
    "87 no such device": (["--device", "cuda:99"], 5, "cuda"),
    "89 diverged": (["--lr", "3e38", "--optimizer", "sgd", "--momentum", "0.9"], 8, "epoch .* step"),
}


@pytest.mark.parametrize("name", TRAIN)
def test_train(name: str, whole_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, code, match = TRAIN[name]
    (tmp_path / "broken.py").write_text("nothing\n")
    (tmp_path / "three.py").write_text("def make(*args, **names): return 3\n")
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    model = [] if "--model" in words else ["--model", "linear"]
    memory = [] if "--memory" in words else ["--memory", "16MB"]
    assert main(["train", str(whole_dataset), *model, *memory, *words, "--json", "--out", str(tmp_path / "a")]) == code
    _is_an_error(capsys.readouterr(), match)


@pytest.mark.parametrize(
    "command", [["info"], ["verify"], ["plan"], ["train", "--model", "linear"]], ids=lambda c: c[0]
)
@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (shutil.rmtree, "no such dataset"),
        (lambda path: (path / "zarr.json").unlink(), "incomplete"),
        (lambda path: (path / "_streamtrain/manifest.json").write_bytes(b"{" * 99), "not the one that was committed"),
        (lambda path: (path / "x/zarr.json").write_bytes(b"{}"), r"x/zarr\.json"),
    ],
    ids=["gone", "56 incomplete", "66 manifest", "69 zarr.json"],
)
def test_a_dataset_that_is_none(
    dataset_to_harm: Path, command: list[str], harm: Make, match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(dataset_to_harm)
    assert main([command[0], str(dataset_to_harm), *command[1:]]) == 4
    out, err = capsys.readouterr()
    assert re.search(match, out + err)
    assert "Traceback" not in err


def test_95_a_dataset_replaced_while_it_is_trained_on(dataset_to_harm: Path) -> None:
    opened = streamtrain.open(dataset_to_harm)
    with streamtrain.StreamLoader(opened, batch_size=10, memory="16MB", timeout=20) as loader:
        for shard in (dataset_to_harm / "x/c").rglob("0"):
            if shard.is_file():
                shard.write_bytes(bytes(reversed(shard.read_bytes())))
        with pytest.raises(streamtrain.DatasetError, match=r"block \d+ of field x \(samples") as caught:
            list(loader)
    assert caught.value.exit_code == 4
