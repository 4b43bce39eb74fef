"""Folders of classes of images: stored as they are, or refused by the file that cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import streamtrain as st
from streamtrain.errors import BudgetError, InputError, StreamtrainError, UsageError
from tests.support.images import class_folders, encoded, pixels_of

PIXELS = pixels_of(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    class_folders(tmp_path / "in", 4, ("cat", "dog"))
    return tmp_path / "in"


def _ingest(folder: Path, dest: str = "d", **options: object) -> st.Dataset:
    return st.ingest(folder, folder.parent / dest, progress=False, **options)  # type: ignore[arg-type]


def test_a_folder_without_classes_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    files = [encoded(pixels_of(i)) for i in range(5)]
    for i, data in enumerate(files):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(data)
    dataset = _ingest(tmp_path / "in")
    assert dataset[:] == {"image": files}
    assert dataset.task is None


def test_content_counts_and_hidden_files_do_not(folder: Path) -> None:
    (folder / "cat" / "a.jpg").write_bytes(encoded(PIXELS, "PNG"))
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "_notes").mkdir()
    dataset = _ingest(folder)
    assert len(dataset) == 9
    assert dataset.classes == ("cat", "dog")
    images = dataset.stats("image").images
    assert images is not None
    assert images.media["image/png"] == 1


def test_a_header_check_decodes_nothing_and_knows_no_channels(folder: Path) -> None:
    dataset = _ingest(folder, check="header")
    assert np.isnan(dataset.stats("image").mean).all()
    images = dataset.stats("image").images
    assert images is not None
    assert images.most_pixels == 23 * 37


def _truncated(kind: str) -> bytes:
    return encoded(PIXELS, kind)[:-1]


def _animated() -> bytes:
    import io

    out = io.BytesIO()
    first, *rest = [Image.fromarray(pixels_of(i)) for i in range(3)]
    first.save(out, "PNG", save_all=True, append_images=rest)
    return out.getvalue()


def _in_mode(mode: str, kind: str = "PNG") -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, kind)
    return out.getvalue()


def _of_16_bits() -> bytes:
    return encoded(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, "PNG")


_DAMAGED = bytearray(encoded(pixels_of(3, size=(64, 64)), "PNG"))
_DAMAGED[120:140] = bytes(20)

BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "text.jpg": (lambda: b"not an image, whatever its name", "not an image"),
    "empty.jpg": (lambda: b"", "empty"),
    "table.jpg": (lambda: b"PAR1" + bytes(20), "Parquet"),
    "cut.jpg": (lambda: _truncated("JPEG"), "its end is missing"),
    "cut.png": (lambda: _truncated("PNG"), "its end is missing"),
    "cut.webp": (lambda: _truncated("WEBP"), "its end is missing"),
    "hole.png": (lambda: bytes(_DAMAGED), "does not decode"),
    "moving.png": (_animated, "animated"),
    "print.jpg": (lambda: _in_mode("CMYK", "JPEG"), "meant for print"),
    "alpha.png": (lambda: _in_mode("RGBA"), "alpha channel"),
    "palette.png": (lambda: _in_mode("P"), "palette"),
    "deep.png": (_of_16_bits, "more than 8 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_on_is_refused_by_its_file(name: str, folder: Path) -> None:
    make, told = BAD[name]
    (folder / "dog" / name).write_bytes(make())
    with pytest.raises(InputError, match=told) as caught:
        _ingest(folder)
    assert caught.value.where == str(folder / "dog" / name)
    assert caught.value.fix
    assert not (folder.parent / "d").exists()


@pytest.mark.parametrize("options", [{}, {"max_side": 10}, {"store": "decoded", "size": 8}], ids=str)
def test_all_images_that_are_refused_are_told_at_once(options: dict[str, object], folder: Path) -> None:
    refused = {"cat/cut.jpg", "dog/cut.png", "dog/moving.png", "dog/text.jpg"}
    for name in refused:
        (folder / name).write_bytes(BAD[Path(name).name][0]())
    with pytest.raises(InputError) as caught:
        _ingest(folder, codec="none", n_workers=1, **options)
    assert {name for name in refused if name in str(caught.value)} == refused
    assert not (folder.parent / "d").exists()


def test_all_files_that_are_no_images_are_told_at_once(folder: Path) -> None:
    for i in range(30):
        (folder / "cat" / f"empty-{i:02}.jpg").touch()
    (folder / "elk").mkdir()
    with pytest.raises(InputError, match=r"empty-00.*Unfit as well: .*empty-01.*; and 10 more") as caught:
        _ingest(folder)
    assert str(caught.value).count("0 bytes") == 21


@pytest.mark.parametrize("name", ["print.jpg", "alpha.png", "palette.png"])
def test_another_mode_is_taken_where_it_is_said_what_it_becomes(name: str, folder: Path) -> None:
    (folder / "dog" / name).write_bytes(BAD[name][0]())
    assert len(_ingest(folder, mode="RGB")) == 9


def test_an_image_of_too_many_pixels(folder: Path) -> None:
    with pytest.raises(InputError, match=r"is more than 700") as caught:
        _ingest(folder, max_pixels=700)
    assert "max_pixels=" in str(caught.value.fix)


def test_an_image_that_the_memory_cannot_hold(folder: Path) -> None:
    (folder / "dog" / "large.png").write_bytes(encoded(np.zeros((1500, 1500, 3), np.uint8), "PNG"))
    with pytest.raises(BudgetError, match=r"takes 27\.0 MB while it is decoded") as caught:
        _ingest(folder, memory="24MB", n_workers=1)
    assert caught.value.where == str(folder / "dog" / "large.png")
    assert len(_ingest(folder, memory="120MB")) == 9


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda at: (at / "a.jpg").write_bytes(encoded(PIXELS)), "a file beside folders of classes"),
        (lambda at: (at / "empty").mkdir(), "without images"),
        (lambda at: shutil.copytree(at / "cat", at / "Cat"), "differ in case only"),
        (lambda at: (at / "cat" / "more").mkdir(), "a folder among images"),
        (lambda at: (at / "cat" / "loop").symlink_to(at / "cat" / "loop"), "cannot be looked up"),
    ],
)
def test_folders_that_are_none_of_classes(make: Callable[[Path], object], told: str, folder: Path) -> None:
    make(folder)
    with pytest.raises(StreamtrainError, match=told) as caught:
        _ingest(folder)
    assert caught.value.fix


def test_one_image_much_larger_than_the_others(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (800, 800, 3), np.uint8)
    (folder / "dog" / "noise.jpg").write_bytes(encoded(noise, quality=100))
    with pytest.raises(InputError, match=r"noise.jpg.*largest|largest.*noise.jpg") as caught:
        _ingest(folder)
    assert "max_side=" in str(caught.value.fix)
    dataset = _ingest(folder, max_side=64)
    assert dataset.manifest.sources[0]["encoded_anew"] == 1
    stored = dataset[:]["image"]
    assert sum(len(data) for data in stored) < 50_000
    assert stored[:4] == [path.read_bytes() for path in sorted((folder / "cat").iterdir())]


def test_decoded_images_are_plain_arrays(folder: Path) -> None:
    dataset = _ingest(folder, store="decoded", size=16)
    (image, y) = dataset.fields
    assert (image.dtype, image.shape, y.name) == (np.dtype(np.uint8), (16, 16, 3), "y")
    path = folder / "cat" / "000.jpg"
    with Image.open(path) as opened:
        left = (opened.width - opened.height) / 2
        box = (left, 0, left + opened.height, opened.height)
        expected = np.asarray(opened.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, box=box))
    assert (dataset[0]["image"] == expected).all()


@pytest.mark.parametrize(
    "options",
    [{"check": "some"}, {"max_pixels": 0}, {"mode": "CMYK"}, {"store": "decoded"}, {"size": 10}, {"max_side": 1.5}],
)
def test_options_that_make_no_sense(options: dict[str, object], folder: Path) -> None:
    with pytest.raises(UsageError):
        _ingest(folder, **options)


def test_options_of_images_for_what_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_side applies to images only"):
        st.ingest({"x": np.zeros(3)}, tmp_path / "d", max_side=10)


def test_splits_appends_and_another_datasets_classes(folder: Path) -> None:
    whole = _ingest(folder, "whole", split={"val": 0.4}, say=lambda text: None)
    root = folder.parent / "whole"
    splits = [st.open(root, split=name)[:]["image"] for name in ("train", "val")]
    files = [path.read_bytes() for path in sorted(folder.rglob("*.*"))]
    assert sorted(splits[0] + splits[1]) == sorted(files)
    assert whole.classes == ("cat", "dog")

    base = _ingest(folder, "base")
    shutil.copytree(folder, folder.parent / "again")
    more = st.ingest(folder.parent / "again", base.path, append=True)
    assert more[:]["image"] == 2 * files
    assert len(more) == 16
    shutil.rmtree(folder / "cat")
    alike = _ingest(folder, "alike", like=base)
    assert alike.classes == ("cat", "dog")
    assert set(alike[:]["y"].tolist()) == {1}
    shutil.move(folder / "dog", folder / "wolf")
    with pytest.raises(InputError, match="wolf"):
        _ingest(folder, "other", like=base)


def test_an_append_of_images_that_no_block_has_room_for(folder: Path, tmp_path: Path) -> None:
    base = _ingest(folder)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    for name in ("cat", "dog"):
        (tmp_path / "more" / name).mkdir(parents=True)
        (tmp_path / "more" / name / "a.jpg").write_bytes(encoded(noise, quality=95))
    with pytest.raises(InputError, match="has room for"):
        st.ingest(tmp_path / "more", base.path, append=True)
    assert st.open(base.path).id == base.id
