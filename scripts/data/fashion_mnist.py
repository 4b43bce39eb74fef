#!/usr/bin/env python3
"""Put the four files of Fashion-MNIST in data/fashion-mnist/, from the first place that has them.

Tried in turn: the folder itself, Debian's package ``dataset-fashion-mnist`` where it is installed, the same package
downloaded and unpacked without being installed, and the publisher's download. Each place compresses in its own way, so
size and SHA-256 are of the decompressed content: one pair of figures for every place. Needs nothing but Python.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747; https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

TARGET: Final = Path(__file__).resolve().parents[2] / "data" / "fashion-mnist"
PACKAGE: Final = "dataset-fashion-mnist"
PACKAGE_FOLDER: Final = "usr/share/datasets/fashion-mnist"
PUBLISHER: Final = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
COMMAND_SECONDS: Final = 600
DOWNLOAD_SECONDS: Final = 60


class Content(NamedTuple):
    """What a file must decompress to."""

    n_bytes: int
    sha256: str


FILES: Final = {
    "train-images-idx3-ubyte.gz": Content(
        47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte.gz": Content(60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte.gz": Content(7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte.gz": Content(10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}


class Unavailable(Exception):
    """A place does not have the files, or not these files."""


Way = Callable[[Path], None]
"""Puts the files in an empty folder, or raises Unavailable or OSError."""


def get(target: Path, files: Mapping[str, Content], ways: Mapping[str, Way]) -> str:
    """Make ``target`` hold the files and return where they came from.

    Parameters
    ----------
    target : Path
        The folder; made where it is missing. A file appears in it whole and checked, or not at all.
    files : Mapping
        File name -> what it must decompress to.
    ways : Mapping
        Name -> way, in the order to try them.

    Raises
    ------
    Unavailable
        No way worked; the message says why, for each.
    """
    tried = []
    if target.is_dir():
        try:
            check(target, files)
            return "already there"
        except (Unavailable, OSError) as error:
            tried.append(f"already there: {error}")
    target.mkdir(parents=True, exist_ok=True)
    for name, fetch in ways.items():
        # Beside their place, so that the move into it is a rename.
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as folder:
            staging = Path(folder)
            try:
                fetch(staging)
                check(staging, files)
            except (Unavailable, OSError) as error:
                tried.append(f"{name}: {error}")
                continue
            for file in files:
                (staging / file).replace(target / file)
            return name
    raise Unavailable("\n  ".join([f"no way to get the files of {target} worked:", *tried]))


def check(folder: Path, files: Mapping[str, Content]) -> None:
    """Raise Unavailable unless the folder holds every file with the content it must have."""
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise Unavailable(f"{name} is missing")
        found = read_content(folder / name, expected.n_bytes)
        if found != expected:
            raise Unavailable(f"{name} decompresses to {found}, expected {expected}")


def read_content(path: Path, n_bytes: int) -> Content:
    """Measure what a file decompresses to, reading no more than one byte beyond ``n_bytes``."""
    try:
        with gzip.open(path) as stream:
            content = stream.read(n_bytes + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unavailable(f"{path.name} is not a whole gzip file: {error}") from None
    return Content(len(content), hashlib.sha256(content).hexdigest())


def from_installed_package(folder: Path) -> None:
    """Copy the files of Debian's installed package."""
    copy_files(Path("/") / PACKAGE_FOLDER, folder)


def from_downloaded_package(folder: Path) -> None:
    """Download Debian's package and unpack it; no root, nothing installed, no list of the system's touched."""
    work = folder / "package"
    work.mkdir()
    try:
        run(["apt-get", "download", PACKAGE], work)
    except Unavailable:
        # A machine that never updated its lists knows no package: fetch lists of our own and ask again.
        for place in ("lists", "cache/archives"):
            (work / place / "partial").mkdir(parents=True)  # apt-get makes no folders as an ordinary user
        ours = ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        run(["apt-get", *ours, "update"], work)
        run(["apt-get", *ours, "download", PACKAGE], work)
    for package in work.glob("*.deb"):
        run(["dpkg-deb", "-x", str(package), "unpacked"], work)
    copy_files(work / "unpacked" / PACKAGE_FOLDER, folder)
    shutil.rmtree(work)


def from_publisher(folder: Path) -> None:
    """Download the files from the publisher's repository."""
    for name in FILES:
        with (
            urllib.request.urlopen(PUBLISHER + name, timeout=DOWNLOAD_SECONDS) as response,
            (folder / name).open("wb") as file,
        ):
            shutil.copyfileobj(response, file)


WAYS: Final[Mapping[str, Way]] = {
    f"Debian's package {PACKAGE}, installed": from_installed_package,
    f"Debian's package {PACKAGE}, downloaded": from_downloaded_package,
    f"the publisher's download from {PUBLISHER}": from_publisher,
}


def copy_files(source: Path, folder: Path) -> None:
    """Copy the four files."""
    if not source.is_dir():
        raise Unavailable(f"there is no {source}")
    for name in FILES:
        shutil.copyfile(source / name, folder / name)


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder; its last words are the reason where it fails."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except FileNotFoundError:
        raise Unavailable(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:2])} took more than {COMMAND_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or ["without a word"]
        raise Unavailable(f"{command[0]} failed with {error.returncode}: {said[-1]}") from None


def main() -> None:
    """Get the files and say from where."""
    parser = argparse.ArgumentParser(description="Fetch Fashion-MNIST.")
    parser.add_argument("target", nargs="?", type=Path, default=TARGET, help="the folder (default: data/fashion-mnist)")
    target = parser.parse_args().target
    try:
        way = get(target, FILES, WAYS)
    except (Unavailable, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"Fashion-MNIST in {os.path.relpath(target)}: {way}")


if __name__ == "__main__":
    main()
