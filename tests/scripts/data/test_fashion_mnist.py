"""The places that Fashion-MNIST comes from, on made-up files and without the network."""

from __future__ import annotations

import gzip
import hashlib
import sys
from pathlib import Path

import pytest

from scripts.data import fashion_mnist as fashion

CONTENTS = {"images.gz": b"pixels" * 100, "labels.gz": b"classes"}
FILES = {name: fashion.Content(len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENTS.items()}


def put(folder: Path, contents: dict[str, bytes] = CONTENTS) -> None:
    for name, data in contents.items():
        (folder / name).write_bytes(gzip.compress(data))


def fail(_: Path) -> None:
    raise fashion.Unavailable("no network")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_place_that_works_gives_the_files(tmp_path: Path) -> None:
    target = tmp_path / "data" / "fashion"
    assert fashion.get(target, FILES, {"mirror": fail, "publisher": put, "never": fail}) == "publisher"
    assert names(target) == ["images.gz", "labels.gz"]
    assert fashion.get(target, FILES, {"never": fail}) == "already there"


def test_compression_does_not_matter_and_content_does(tmp_path: Path) -> None:
    for name, data in CONTENTS.items():
        (tmp_path / name).write_bytes(gzip.compress(data, compresslevel=1, mtime=0))
    fashion.check(tmp_path, FILES)
    put(tmp_path, {"labels.gz": b"Classes"})
    with pytest.raises(fashion.Unavailable, match=r"labels\.gz decompresses to .* expected"):
        fashion.check(tmp_path, FILES)


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({"images.gz": b"pixels" * 100}, "labels.gz is missing"),
        ({**CONTENTS, "labels.gz": b"class"}, "n_bytes=5"),
        ({**CONTENTS, "labels.gz": b"0" * 10**6}, "n_bytes=8"),
    ],
)
def test_other_files_are_refused_and_none_is_placed(tmp_path: Path, contents: dict[str, bytes], reason: str) -> None:
    with pytest.raises(fashion.Unavailable) as caught:
        fashion.get(tmp_path, FILES, {"mirror": lambda folder: put(folder, contents), "publisher": fail})
    lines = str(caught.value).splitlines()
    assert lines[1].strip().startswith("already there: images.gz is missing")
    assert reason in lines[2]
    assert lines[3].strip() == "publisher: no network"
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", [b"\x1f\x8b", b"not gzip at all", gzip.compress(b"classes", mtime=0)[:-4]])
def test_a_file_that_is_no_whole_gzip_is_refused(tmp_path: Path, damage: bytes) -> None:
    put(tmp_path)
    (tmp_path / "labels.gz").write_bytes(damage)
    with pytest.raises(fashion.Unavailable, match=r"labels\.gz is not a whole gzip file"):
        fashion.check(tmp_path, FILES)


def test_a_failing_command_is_told_by_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(fashion.Unavailable, match="there is no no-such-command here"):
        fashion.run(["no-such-command"], tmp_path)
    with pytest.raises(fashion.Unavailable, match="failed with 3: because"):
        fashion.run([sys.executable, "-c", "import sys; print('because', file=sys.stderr); sys.exit(3)"], tmp_path)
