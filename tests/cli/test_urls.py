"""A URL is no folder of this machine: every command refuses it with exit code 2, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import streamtrain
from streamtrain.cli.main import main
from streamtrain.comparison.compare import compare
from streamtrain.errors import UsageError
from streamtrain.store.verify import verify
from streamtrain.system.files import local_path

X, Y = np.arange(120, dtype="f4").reshape(60, 2), np.arange(60) % 3
URLS = [
    "s3://bucket/d.zarr",
    "s3://bucket",
    "gs://bucket/a/d.zarr",
    "https://example.org/d.zarr?x=1",
    "hdfs://host:9000/d.zarr",
    "simplecache::s3://bucket/d.zarr",
    "memory://d.zarr",
]
QUICK = ["--model", "linear", "--epochs", "1", "--memory", "32MB"]
COMMANDS: dict[str, list[str]] = {
    "ingest from": ["ingest", "URL", "new.zarr"],
    "ingest to": ["ingest", "x.npy", "URL"],
    "ingest labels": ["ingest", "x.npy", "new.zarr", "--labels", "URL"],
    "ingest several": ["ingest", "x.npy", "URL", "new.zarr"],
    "overwrite": ["ingest", "x.npy", "URL", "--overwrite"],
    "append": ["ingest", "x.npy", "URL", "--append"],
    "resume": ["ingest", "x.npy", "URL", "--resume"],
    "info": ["info", "URL"],
    "verify": ["verify", "URL"],
    "verify in full": ["verify", "URL", "--full"],
    "repair": ["repair", "URL"],
    "repair and remove": ["repair", "URL", "--remove"],
    "plan": ["plan", "URL"],
    "train on": ["train", "URL", *QUICK],
    "train and measure on": ["train", "d.zarr", "--val", "URL", *QUICK],
    "train into": ["train", "d.zarr", "--out", "URL", *QUICK],
    "train on in": ["train", "d.zarr", "--out", "URL", "--resume", *QUICK],
    "evaluate a run": ["evaluate", "URL", "d.zarr"],
    "evaluate on": ["evaluate", "run", "URL"],
    "compare on": ["compare", "URL", *QUICK],
    "compare and measure on": ["compare", "d.zarr", "--val", "URL", *QUICK],
    "compare into": ["compare", "d.zarr", "--out", "URL", *QUICK],
    "report a run": ["report", "URL"],
    "report into": ["report", "run", "--out", "URL"],
    "report on": ["report", "run", "--dataset", "URL"],
    "profile into": ["profile", "--no-png", "--out", "URL", "--", "true"],
    "doctor": ["doctor", "URL"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features, a dataset of them and a run on it."""
    made = tmp_path_factory.mktemp("urls")
    np.save(made / "x.npy", X)
    dataset = streamtrain.ingest({"x": X, "y": Y}, made / "d.zarr")
    assert main(["train", str(dataset.path), "--out", str(made / "run"), *QUICK]) == 0
    return made


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_a_url_wherever_it_takes_a_path(
    here: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    for url in URLS if name in ("ingest to", "train into", "info") else URLS[:1]:
        assert main([url if word == "URL" else word for word in COMMANDS[name]]) == 2, url
        err = capsys.readouterr().err
        assert f"{url}: a URL, not a file or folder on this machine. Fix: copy it here or mount it" in err
    assert tree(here) == before


def loader(path: Any) -> streamtrain.StreamLoader:
    return streamtrain.StreamLoader(streamtrain.open(path), batch_size=20, memory="16MB", seed=0)


def fit(checkpoint: Any, resume: Any = None) -> None:
    trainer = streamtrain.Trainer(torch.nn.Linear(2, 3), loss="cross_entropy", device="cpu")
    with loader("d.zarr") as batches:
        trainer.fit(batches, max_epochs=1, checkpoint=checkpoint, resume=resume, progress=False)


CALLS: dict[str, Callable[[Any], Any]] = {
    "open": streamtrain.open,
    "ingest to": lambda url: streamtrain.ingest(X, url),
    "ingest over": lambda url: streamtrain.ingest(X, url, overwrite=True),
    "append to": lambda url: streamtrain.ingest(X, url, append=True),
    "ingest from": lambda url: streamtrain.ingest(url, "new.zarr"),
    "ingest from several": lambda url: streamtrain.ingest(["x.npy", url], "new.zarr"),
    "labels": lambda url: streamtrain.ingest("x.npy", "new.zarr", labels=url),
    "verify": verify,
    "checkpoint": fit,
    "resume": lambda url: fit(url, "auto"),
    "compare": lambda url: compare(torch.nn.Linear(2, 3), streamtrain.open("d.zarr"), max_epochs=1, out=Path(url)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [str, Path])
def test_python_refuses_it_as_text_and_as_a_path(here: Path, name: str, kind: type) -> None:
    before = tree(here)
    with pytest.raises(UsageError, match=r"s3://bucket/d\.zarr: a URL"):
        CALLS[name](kind("s3://bucket/d.zarr"))
    assert tree(here) == before


@pytest.mark.parametrize("url", ["file:///data/d.zarr", "file://data/d.zarr", Path("file:///data/d.zarr")])
def test_of_a_file_url_the_path_is_named(url: Any) -> None:
    with pytest.raises(UsageError, match=r"Fix: give the path itself, /data/d\.zarr\."):
        local_path(url)


@pytest.mark.parametrize(
    "path",
    ["d.zarr", "/data/d.zarr", "a:b/d.zarr", "C:/data", "2024-01-01T00:00/x", "x:/y", "./s3:/b", "s3:b", "s3", ""],
)
def test_what_is_no_url_is_taken(path: str) -> None:
    assert local_path(path) == Path(path)
    if not path.startswith("./"):
        assert local_path(Path(path)) == Path(path)


def test_a_folder_whose_name_has_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run:1.zarr", f"{tmp_path}{os.sep}s3:{os.sep}d.zarr"):
        Path(name).parent.mkdir(exist_ok=True)
        streamtrain.ingest(X, name)
        assert len(streamtrain.open(name)) == len(streamtrain.open(Path(name))) == 60
