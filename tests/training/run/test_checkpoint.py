"""The folder of a run: its content, and the handling of a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from streamtrain.errors import CheckpointError, ResourceError, UsageError
from streamtrain.models.normalization import Normalize
from streamtrain.system.files import Files
from streamtrain.system.syscalls import Syscalls
from streamtrain.training.run.checkpoint import (
    Checkpoint,
    find_checkpoint,
    load_weights,
    newest_checkpoint,
    normalize_states,
    normalize_tensors,
    read_checkpoint,
    write_checkpoint,
)
from streamtrain.training.run.run_folder import RunFolder, epochs_backwards, newest_run, read_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints; the model's weights are 1, then 2."""
    path = tmp_path / "runs" / "1"
    model = nn.Linear(2, 1)
    with RunFolder(path, {"model": "linear"}) as folder:
        folder.log(kind="batch", loss=0.5)
        folder.log(kind="epoch", loss=float("nan"))
        for n_batches, value in ((9, 1.0), (10, 2.0)):
            nn.init.constant_(model.weight, value)
            normalize = normalize_tensors({"x": Normalize(torch.tensor(3.0), torch.tensor(0.0))})
            folder.save(n_batches, {"counts": n_batches}, {"model": model.state_dict(), "normalize": normalize})
    return path


def test_a_run_holds_config_metrics_and_weights(run: Path) -> None:
    assert read_config(run)["model"] == "linear"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "batch", "loss": 0.5}, {"kind": "epoch", "loss": None}]
    checkpoint = newest_checkpoint(run)
    assert checkpoint.path.name == "00000010"
    assert checkpoint.state == {"version": 1, "counts": 10, "metrics_bytes": (run / "metrics.jsonl").stat().st_size}
    model = nn.Linear(2, 1)
    load_weights(model, checkpoint)
    assert model.weight.tolist() == [[2.0, 2.0]]
    assert normalize_states(checkpoint) == {"x": {"mean": torch.tensor(3.0), "std": torch.tensor(1.0)}}


def test_nothing_appears_before_there_is_something_to_keep(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", {}):
        pass
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="the run folder is taken") as caught:
        RunFolder(run, {})
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError):
        RunFolder(run / "config.json", {})


def test_no_run_names_those_beside_it(run: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"no such folder. Fix: (give |one of |did you mean '){run}") as caught:
        read_config(run.parent / "2")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_damaged_config_is_refused(run: Path, text: str) -> None:
    (run / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json"):
        read_config(run)


def test_a_run_without_a_checkpoint_says_so(run: Path) -> None:
    for file in run.glob("checkpoints/*/manifest.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"00000010: is not complete.*00000009: is not complete") as caught:
        newest_checkpoint(run)
    assert caught.value.exit_code == 6
    with pytest.raises(CheckpointError, match="stopped before its first"):
        newest_checkpoint(run / "none")


FILES = ("manifest.json", "model.safetensors", "normalize.safetensors", "state.json")


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_and_every_truncation_is_found(run: Path, name: str) -> None:
    file = newest_checkpoint(run).path / name
    whole = file.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        found, skipped = find_checkpoint(run)
        # A digit of the manifest's version, or the case of a hexadecimal digit, changes nothing it says of the files.
        assert found is not None
        assert found.path.name == "00000009" or name == "manifest.json", f"byte {place}"
        assert len(skipped) == (found.path.name == "00000009")
        assert found.state["counts"] == int(found.path.name)
    for n_bytes in range(len(whole)):
        file.write_bytes(whole[:n_bytes])
        assert find_checkpoint(run)[0].path.name == "00000009", f"{n_bytes} bytes"
    file.write_bytes(whole)
    assert find_checkpoint(run)[0].path.name == "00000010"


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_a_link_are_refused(run: Path, name: str) -> None:
    folder = newest_checkpoint(run).path
    (folder / name).rename(run / "elsewhere")
    with pytest.raises(CheckpointError, match="missing"):
        read_checkpoint(folder)
    (folder / name).symlink_to(run / "elsewhere")
    if name != "manifest.json":
        with pytest.raises(CheckpointError, match="missing"):
            read_checkpoint(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        b"[]",
        b'{"files": []}',
        b'{"files": {"state.json": {"bytes": 1}}}',
        b'{"files": {"state.json": {"bytes": 1, "sha256": ""}, "../../config.json": {"bytes": 1, "sha256": ""}}}',
        b" " * (1 << 21),
    ],
)
def test_a_manifest_that_lists_something_else_is_refused(run: Path, manifest: bytes) -> None:
    folder = newest_checkpoint(run).path
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(CheckpointError, match=r"manifest.json: is damaged"):
        read_checkpoint(folder)


def test_a_failed_save_leaves_the_earlier_ones(run: Path) -> None:
    class Failing(Syscalls):
        left = 0

        def fsync(self, fd: int) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")
            super().fsync(fd)

    for n_calls in range(2):
        system = Failing()
        system.left = n_calls
        with pytest.raises(ResourceError, match="No space left"):
            write_checkpoint(Files(system=system), run, 11, {}, {"model": {"w": torch.ones(3)}})
        assert newest_checkpoint(run).path.name == "00000010"


class Full(Syscalls):
    """A disk that is full after a number of calls of one kind."""

    def __init__(self, kind: str, left: int) -> None:
        self.kind, self.left = kind, left

    def _use(self, kind: str) -> None:
        if kind == self.kind:
            self.left -= 1
            if self.left < 0:
                raise OSError(28, "No space left on device")

    def writev(self, fd: int, buffers: Any) -> int:
        self._use("writev")
        return super().writev(fd, buffers)

    def mkdir(self, path: Path) -> None:
        self._use("mkdir")
        super().mkdir(path)

    def rename(self, old: Path, new: Path) -> None:
        self._use("rename")
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> None:
        self._use("exchange")
        super().exchange(one, other)


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("n_batches", [10, 11])
@pytest.mark.parametrize("kind", ["writev", "mkdir", "rename", "exchange"])
def test_what_was_begun_of_a_failed_save_gives_its_space_back(run: Path, kind: str, n_batches: int) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for left in range(20):
        files = Files(system=Full(kind, left))
        try:
            write_checkpoint(files, run, n_batches, {}, {"model": {"w": torch.ones(3)}})
            break
        except ResourceError as error:
            said = str(error)
        assert "No space left" in said
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert folders(run) == ["00000009", "00000010"]
    # A new one has no other's place to take.
    assert left > 0 or (kind, n_batches) == ("exchange", 11)
    assert newest_checkpoint(run).path.name == f"{n_batches:08d}"


def test_one_of_the_same_batch_takes_the_others_place_where_names_cannot_be_exchanged(run: Path) -> None:
    class Without(Syscalls):
        def exchange(self, one: Path, other: Path) -> None:
            raise OSError(38, "Function not implemented")

    write_checkpoint(Files(system=Without()), run, 10, {"counts": 7}, {})
    assert newest_checkpoint(run).state["counts"] == 7
    assert folders(run) == ["00000009", "00000010"]


def test_the_one_before_is_kept_whatever_else_lies_there(run: Path) -> None:
    parent = run / "checkpoints"
    (parent / "00000010" / "manifest.json").unlink()  # one that was not finished
    (parent / "00000010.new").mkdir()
    (parent / "00000099").mkdir()
    (parent / "00000099" / "manifest.json").write_bytes(b"{}")  # one that was skipped as damaged
    (parent / "notes").mkdir()
    write_checkpoint(Files(), run, 11, {}, {})
    assert folders(run) == ["00000009", "00000011", "notes"]


def test_metrics_that_cannot_be_written_wait(tmp_path: Path) -> None:
    path, system = tmp_path / "run", Full("writev", 1)  # config.json, and nothing more
    with RunFolder(path, {}, files=Files(system=system)) as folder:
        for batch in range(3):
            folder.log(batch=batch)
        assert (path / "metrics.jsonl").read_bytes() == b""
        with pytest.raises(ResourceError, match=r"metrics.jsonl: cannot write: No space left.*free some space"):
            folder.save(3, {}, {})
        system.left = 1000
        folder.save(4, {}, {})
    assert (path / "metrics.jsonl").read_text() == "".join(f'{{"batch": {batch}}}\n' for batch in range(3))
    assert newest_checkpoint(path).state["metrics_bytes"] == (path / "metrics.jsonl").stat().st_size


def test_only_the_newest_and_the_one_before_are_kept(run: Path) -> None:
    for n_batches in (11, 12):
        write_checkpoint(Files(), run, n_batches, {}, {})
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["00000011", "00000012"]
    write_checkpoint(Files(), run, 12, {"counts": 7}, {})
    assert newest_checkpoint(run).state["counts"] == 7


def test_weights_of_another_model_are_refused(run: Path) -> None:
    with pytest.raises(CheckpointError, match="another model: size mismatch for weight") as caught:
        load_weights(nn.Linear(3, 1), newest_checkpoint(run))
    assert caught.value.exit_code == 6


def test_a_pickle_is_no_checkpoint(run: Path) -> None:
    ran = run / "ran"
    folder = newest_checkpoint(run).path
    payload = b"cposix\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    for name in FILES:
        (folder / name).write_bytes(payload)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(folder)
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(nn.Linear(2, 1), Checkpoint(path=folder, state={}))
    assert not ran.exists()


def test_metrics_written_after_a_checkpoint_are_forgotten(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes()
    with RunFolder(run, {"model": "other", "fit": {"max_epochs": 9}}, resumes=True) as folder:
        folder.log(kind="epoch", loss=7.0)
        assert next(epochs_backwards(run)) == {"kind": "epoch", "loss": 7.0}
        folder.rewind(len(lines))
        folder.log(kind="batch", loss=1.0)
    assert (run / "metrics.jsonl").read_bytes() == lines + b'{"kind": "batch", "loss": 1.0}\n'
    assert read_config(run)["model"] == "linear", "a run that goes on is what it was"
    assert read_config(run)["fit"] == {"max_epochs": 9}, "but for the call that repeats all of it"
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: \d+ bytes; the checkpoint was made after 999999"):
        folder.rewind(999999)
    assert newest_run(run.parent) == run
    assert newest_run(run) is None


def test_tied_and_transposed_weights_are_kept(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.out.weight = self.into.weight
            self.register_buffer("view", torch.arange(6.0).reshape(2, 3).T)

    saved, loaded = Tied(), Tied()
    folder = write_checkpoint(Files(), tmp_path, 1, {}, {"model": saved.state_dict()})
    load_weights(loaded, read_checkpoint(folder))
    assert torch.equal(loaded.out.weight, saved.into.weight)
    assert loaded.out.weight is loaded.into.weight


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'extra' is dict, not a tensor"):
        write_checkpoint(Files(), tmp_path, 1, {}, {"model": {"extra": {}}})
    assert not list(tmp_path.iterdir())
