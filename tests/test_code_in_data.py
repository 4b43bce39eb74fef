"""No code from data: files that run code when they are unpickled, in every place where data is read; nothing runs.

Numbers are the rows of the list of bad inputs that the design keeps.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamtrain
from streamtrain.cli.main import main

X = np.arange(60, dtype=np.float32).reshape(20, 3)


class Payload:
    """Leaves a file behind if anybody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    path = tmp_path / "the code has run"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists(), "the payload is a real one"
    path.unlink()
    return path


def save_object(folder: Path, marker: Path) -> list[str]:
    np.save(folder / "x.npy", np.array([Payload(marker)], object), allow_pickle=True)
    return ["x.npy"]


def save_member(folder: Path, marker: Path) -> list[str]:
    np.savez(folder / "x.npz", x=np.array([Payload(marker)], object), allow_pickle=True)
    return ["x.npz"]


def save_pickle(name: str) -> Callable[[Path, Path], list[str]]:
    def save(folder: Path, marker: Path) -> list[str]:
        (folder / name).write_bytes(pickle.dumps({"data": Payload(marker), "labels": Payload(marker)}))
        return [name]

    return save


@pytest.mark.parametrize(
    "save",
    [
        save_object,
        save_member,
        *map(save_pickle, ("data_batch_1", "x.npy", "x.npz", "x.pkl", "x.csv", "x.parquet", "x.idx")),
    ],
    ids=["22 npy", "22 npz", "44 CIFAR", "npy", "npz", "pkl", "csv", "parquet", "idx"],
)
def test_code_in_a_source_does_not_run(
    save: Callable[[Path, Path], list[str]], tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = save(tmp_path, marker)
    assert main(["ingest", *[str(tmp_path / word) for word in words], str(tmp_path / "out")]) == 3
    err = capsys.readouterr().err
    assert str(tmp_path / words[0]) in err
    assert "allow_pickle" not in err
    assert not marker.exists()


@pytest.mark.parametrize(
    "key",
    [
        "zarr.json",
        "_streamtrain/manifest.json",
        "x/zarr.json",
        "x/c/0/0",
        "_streamtrain/crc32c/c/0/0",
        "_streamtrain/stats/x/c/0/0",
    ],
)
def test_code_in_a_dataset_does_not_run(
    dataset_to_harm: Path, key: str, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (dataset_to_harm / key).stat().st_size
    data = pickle.dumps(Payload(marker))
    (dataset_to_harm / key).write_bytes((data + b"." * size)[: max(size, len(data))])
    codes = {main([*words, str(dataset_to_harm)]) for words in (["verify", "--full"], ["info"])}
    assert 4 in codes
    main(
        [
            "train",
            str(dataset_to_harm),
            "--model",
            "linear",
            "--memory",
            "16MB",
            "--epochs",
            "1",
            "--out",
            str(dataset_to_harm.parent / "a"),
        ]
    )
    capsys.readouterr()
    assert not marker.exists()


def test_48_a_codec_that_unpickles_is_no_codec_of_ours(dataset_to_harm: Path, marker: Path) -> None:
    """Everything agrees with everything: manifest, root, lengths; but the array says its blocks are pickles."""
    described = json.loads((dataset_to_harm / "x/zarr.json").read_bytes())
    described["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    _reseal(dataset_to_harm, "x/zarr.json", json.dumps(described).encode())
    with pytest.raises(streamtrain.DatasetError, match="the array is not the one in the manifest"):
        streamtrain.open(dataset_to_harm)[0]
    assert not marker.exists()


def _reseal(path: Path, key: str, data: bytes) -> None:
    from streamtrain.store.codec import checksum

    (path / key).write_bytes(data)
    manifest = json.loads((path / "_streamtrain/manifest.json").read_bytes())
    manifest["files"][key] = [len(data), checksum(data)]
    (path / "_streamtrain/manifest.json").write_text(json.dumps(manifest))
    root = json.loads((path / "zarr.json").read_bytes())
    digest = hashlib.sha256((path / "_streamtrain/manifest.json").read_bytes()).hexdigest()
    root["attributes"]["streamtrain"]["manifest_sha256"] = digest
    (path / "zarr.json").write_text(json.dumps(root))


def test_72_a_key_that_leads_out_reads_nothing_there(
    dataset_to_harm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    secret.chmod(0o600)
    before = secret.stat().st_atime_ns
    manifest = json.loads((dataset_to_harm / "_streamtrain/manifest.json").read_bytes())
    manifest["files"]["../secret"] = [17, 0]
    del manifest["files"]["_streamtrain/zarr.json"]
    (dataset_to_harm / "_streamtrain/manifest.json").write_text(json.dumps(manifest))
    _reseal(dataset_to_harm, "x/zarr.json", (dataset_to_harm / "x/zarr.json").read_bytes())
    assert main(["verify", str(dataset_to_harm), "--full"]) == 4
    err = capsys.readouterr().err
    assert "the manifest's files are not those of its layout" in err
    assert "nobody" not in err
    assert secret.stat().st_atime_ns == before


def test_92_code_in_a_checkpoint_does_not_run(
    whole_dataset: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    run = tmp_path / "run"
    words = [
        "train",
        str(whole_dataset),
        "--model",
        "linear",
        "--memory",
        "16MB",
        "--epochs",
        "1",
        "--out",
        str(run),
        "--json",
    ]
    assert main(words) == 0
    weights = list((run / "checkpoints").rglob("*.safetensors"))
    assert weights
    for path in weights:
        torch.save({"model": Payload(marker)}, path)
    capsys.readouterr()
    assert main(["evaluate", str(run), str(whole_dataset)]) == 6
    assert "checkpoint" in capsys.readouterr().err
    assert main([*words[:-1], "--resume", "--epochs", "2"]) in (0, 6)
    assert "checkpoint" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("place", ["network.py", "run/network.py", "d.zarr/network.py", "link.py", "{tmp}/network.py"])
def test_code_that_a_run_names_runs_only_where_the_user_names_it(
    place: str,
    dataset_to_harm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = str(dataset_to_harm)
    train = ["train", data, "--memory", "16MB", "--epochs", "1", "--out", "run", "--device", "cpu"]
    assert main([*train, "--model", "linear"]) == 0
    file = Path(place.replace("{tmp}", str(tmp_path)))
    code = "import pathlib, torch\npathlib.Path('ran').touch()\ndef f(): return torch.nn.Linear(3, 3)\n"
    if place == "link.py":
        Path("elsewhere").write_text(code)
        file.symlink_to("elsewhere")
    else:
        file.write_text(code)
    config = json.loads(Path("run/config.json").read_text())
    Path("run/config.json").write_text(json.dumps(config | {"model": f"{file}:f"}))
    capsys.readouterr()
    assert main(["evaluate", "run", data, "--memory", "16MB"]) == 6
    err = capsys.readouterr().err
    assert f"Fix: --model {file}:f, if you know what is in it." in err
    assert main(["report", "run"]) == 0
    assert main(["info", data]) == 0
    assert main([*train, "--model", "linear", "--resume"]) in (0, 6)
    assert not Path("ran").exists()
    assert main(["evaluate", "run", data, "--memory", "16MB", "--model", f"{file}:f"]) == 6
    assert Path("ran").exists()


def test_python_dash_m_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    for name in ("numpy", "torch", "json", "click", "pathlib"):
        (tmp_path / f"{name}.py").write_text("import os\nos.mkdir('ran')\n")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    words = [sys.executable, "-m", "streamtrain", "ingest", "x.csv", "d.zarr"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "ran").exists()) == (0, False), done.stderr
