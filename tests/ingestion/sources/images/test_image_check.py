"""Interrupted ingests of images, and files in which bytes were changed: refused or stored, never a crash."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import streamtrain as st
from streamtrain.errors import InputError, StreamtrainError
from streamtrain.ingestion.sources.base import ImageOptions
from streamtrain.ingestion.sources.images.image_check import DecodingRoom, ImageCheck
from streamtrain.store.media.channels import MeasuredImage
from tests.support.images import class_folders, encoded, pixels_of


class Killed(Exception):
    """In place of a process that is killed."""


@pytest.mark.parametrize("at", [30, 75, 119])
def test_a_resumed_ingest_ends_with_the_same_bytes(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "in", 40)
    how = {"block": "4KB", "shard": "16KB", "n_workers": 1, "progress": False}
    whole = st.ingest(tmp_path / "in", tmp_path / "whole", **how)
    stored, n_done = ImageCheck.stored, 0

    def doomed(self: ImageCheck, data: bytes, where: str) -> MeasuredImage:
        nonlocal n_done
        n_done += 1
        if n_done > at:
            raise Killed
        return stored(self, data, where)

    with monkeypatch.context() as patch:
        patch.setattr(ImageCheck, "stored", doomed)
        with pytest.raises(Killed):
            st.ingest(tmp_path / "in", tmp_path / "d", **how)
    resumed = st.ingest(tmp_path / "in", tmp_path / "d", resume=True, **how)
    assert resumed.id == whole.id
    files = [path.relative_to(whole.path) for path in sorted(whole.path.rglob("*")) if path.is_file()]
    assert [(resumed.path / file).read_bytes() == (whole.path / file).read_bytes() for file in files] == [True] * len(
        files
    )
    (tmp_path / "in" / "cat" / "000.jpg").write_bytes(encoded(pixels_of(9)))
    with pytest.raises(StreamtrainError, match="differently"):
        st.ingest(tmp_path / "in", tmp_path / "d", resume=True, **how)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_changed_bytes_are_refused_or_stored_as_they_are(kind: str) -> None:
    data, rng = encoded(pixels_of(1, size=(40, 50)), kind), np.random.default_rng(0)
    check, n_refused, refused = ImageCheck(ImageOptions(), 10**8), 0, set[str | None]()
    for _ in range(150):
        changed = bytearray(data)
        for at in rng.integers(0, len(data), 3).tolist():
            changed[at] = int(rng.integers(0, 256))
        try:
            found = check.stored(bytes(changed), "here")
        except StreamtrainError as error:
            refused.add(error.where)
            n_refused += 1
        else:
            assert found == changed
            assert found.measures.n_pixels <= 64_000_000
    assert n_refused > 20
    assert refused == {"here"}


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(encoded(np.zeros((8, 8, 3), np.uint8), "PNG"))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match="pixels"):
        ImageCheck(ImageOptions(), 10**8).stored(bytes(bomb), "here")


def test_a_smaller_image_keeps_its_turn() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(pixels_of(2, size=(40, 90)), exif=exif)
    check = ImageCheck(ImageOptions(max_side=20), 10**8)
    with Image.open(io.BytesIO(check.stored(data, "here"))) as image:
        assert image.size == (20, 45)
        assert image.format == "JPEG"
    assert check.length(data, "here") == len(check.stored(data, "here"))
    assert check.stored(encoded(pixels_of(2, size=(20, 90))), "here") == encoded(pixels_of(2, size=(20, 90)))


def test_images_share_the_room_to_decode_in() -> None:
    room = DecodingRoom(4 * 12 * 100)
    with room.room((10, 6), "a"), room.room((10, 4), "b"):
        assert room._free == 0
    assert room._free == room.n_bytes


def test_a_phone_s_picture_with_another_behind_it_is_a_jpeg() -> None:
    out = io.BytesIO()
    first, second = (Image.fromarray(pixels_of(i)) for i in range(2))
    first.save(out, "MPO", save_all=True, append_images=[second])
    found = ImageCheck(ImageOptions(), 10**8).stored(out.getvalue(), "here")
    assert found == out.getvalue()
    assert found.measures.media == "image/jpeg"
