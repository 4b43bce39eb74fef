"""Labels of images from a table: by the files' names, whatever the order."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamtrain as st
from streamtrain.errors import InputError, UsageError
from tests.support.images import class_folders, encoded, pixels_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for i in range(6):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(encoded(pixels_of(i)))
    return tmp_path / "in"


def _ingest(folder: Path, lines: str, **options: object) -> st.Dataset:
    (folder.parent / "labels.csv").write_text(lines)
    named = {"label_key": "file", "label_column": "kind", **options}
    return st.ingest(folder, folder.parent / "d", labels=folder.parent / "labels.csv", progress=False, **named)  # type: ignore[arg-type]


def test_labels_are_matched_by_name_with_the_suffix_or_without(folder: Path) -> None:
    rows = [f"{i}.jpg,{'cat' if i % 2 else 'dog'}" for i in (4, 2, 0)] + [
        f"{i},{'cat' if i % 2 else 'dog'}" for i in (5, 1, 3)
    ]
    dataset = _ingest(folder, "\n".join(["file,kind", *rows]) + "\n")
    assert dataset.classes == ("cat", "dog")
    assert dataset[:]["y"].tolist() == [1, 0] * 3
    numbers = st.ingest(
        folder, folder.parent / "n", labels=folder.parent / "labels.csv", label_key="file", label_column="kind"
    )
    assert numbers[:]["image"] == dataset[:]["image"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([f"{i}.jpg,1" for i in range(5)], "1 images have no label: 5.jpg"),
        ([*(f"{i}.jpg,1" for i in range(6)), "9.jpg,0"], "there is no image '9.jpg'"),
        ([*(f"{i}.jpg,1" for i in range(6)), "3.jpg,0"], "has a second label"),
        ([*(f"{i}.jpg,1" for i in range(5)), "5.jpg,"], "has no label"),
    ],
)
def test_every_image_has_one_label(rows: list[str], told: str, folder: Path) -> None:
    with pytest.raises(InputError, match=told) as caught:
        _ingest(folder, "\n".join(["file,kind", *rows]) + "\n")
    assert caught.value.fix


def test_labels_in_no_order_are_not_guessed(folder: Path, tmp_path: Path) -> None:
    lines = "file,kind\n" + "".join(f"{i}.jpg,{i}\n" for i in range(6))
    with pytest.raises(UsageError, match="says by name whose they are"):
        _ingest(folder, lines, label_key=None)
    with pytest.raises(InputError, match="no column 'phile'"):
        _ingest(folder, lines, label_key="phile")
    class_folders(tmp_path / "classes", 2)
    with pytest.raises(UsageError, match="folders of classes"):
        _ingest(tmp_path / "classes", lines)
    with pytest.raises(UsageError, match="label_key applies to images only"):
        st.ingest({"x": [1.0]}, tmp_path / "x", label_key="file")
    assert _ingest(folder, lines)[:]["y"].tolist() == list(range(6))


def test_a_dataset_of_images_is_stored_again(folder: Path) -> None:
    dataset = st.ingest(folder, folder.parent / "one", progress=False)
    again = st.ingest(dataset, folder.parent / "two", block="2KB", progress=False)
    assert again[:] == dataset[:]
    assert again.stats("image").mean.tolist() == pytest.approx(dataset.stats("image").mean.tolist())
    renamed = st.ingest(dataset, folder.parent / "three", fields={"picture": "image"}, progress=False)
    assert renamed[:]["picture"] == dataset[:]["image"]
    assert [field.name for field in renamed.fields] == ["picture", "picture_bytes"]
