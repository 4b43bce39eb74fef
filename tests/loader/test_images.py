"""Images decoded in the threads that gather: the same pixels whatever memory, threads, ranks and resumed runs."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import streamtrain as st
from streamtrain.errors import BudgetError, DamagedSample, UsageError
from streamtrain.loader.decode.image_dataset import with_images
from streamtrain.loader.decode.images import crop_of, decode_into
from streamtrain.loader.device.transfer import Placement
from streamtrain.loader.quarantine import first_rows
from tests.support.images import class_folders, encoded, pixels_of

Batches = list[tuple[torch.Tensor, torch.Tensor, list[int]]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    root = tmp_path_factory.mktemp("images") / "in"
    class_folders(root, 40)
    return st.ingest(root, root.parent / "d.zarr", block="6KB", shard="32KB")


def _batches(dataset: st.Dataset, epochs: int = 1, **options: Any) -> Batches:
    options = {"batch_size": 16, "decode": {"image": st.Images(20)}, "lanes": 8, "groups": 4, **options}
    with st.StreamLoader(dataset, **options) as loader:
        return [
            (batch.image.clone(), batch.y.clone(), loader.last_samples().tolist())
            for _ in range(epochs)
            for batch in loader
        ]


def _equal(one: Batches, other: Batches) -> bool:
    same = [a[0].equal(b[0]) and a[1].equal(b[1]) and a[2] == b[2] for a, b in zip(one, other, strict=True)]
    return all(same)


def test_batches_are_images_of_one_size_channels_last_without_a_copy(dataset: st.Dataset) -> None:
    with st.StreamLoader(dataset, batch_size=16, decode={"image": st.Images(20)}) as loader:
        batch = next(iter(loader))
    assert batch._fields == ("image", "y")
    assert (batch.image.shape, batch.image.dtype) == ((16, 3, 20, 20), torch.uint8)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    gray = _batches(dataset, decode={"image": st.Images(20, mode="L")})[0][0]
    assert gray.shape == (16, 1, 20, 20)


def test_a_center_crop_is_that_of_pillow(dataset: st.Dataset) -> None:
    how = st.Images(20, crop="center", resize=22)
    for images, _, samples in _batches(dataset, decode={"image": how}):
        for image, sample in zip(images, samples, strict=True):
            with Image.open(io.BytesIO(dataset[sample]["image"])) as opened:
                side = min(opened.size) * 20 / 22
                left, top = (opened.width - side) / 2, (opened.height - side) / 2
                box = (left, top, left + side, top + side)
                whole = opened.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR, box=box)
            assert (image.permute(1, 2, 0).numpy() == np.asarray(whole)).all()


def test_a_crop_follows_from_seed_epoch_and_sample_alone(dataset: st.Dataset) -> None:
    """Neither the memory, nor the order, nor the batch that a sample is in."""
    first = _batches(dataset, 2)
    assert _equal(first, _batches(dataset, 2, memory="30MB"))
    of_sample = {
        sample: image for images, _, samples in first[:8] for image, sample in zip(images, samples, strict=True)
    }
    for images, _, samples in _batches(dataset, shuffle=False, batch_size=10, lanes=None, groups=None):
        assert all(image.equal(of_sample[sample]) for image, sample in zip(images, samples, strict=True))
    again = {sample: image for images, _, samples in first[8:] for image, sample in zip(images, samples, strict=True)}
    n_changed = sum(not image.equal(again[sample]) for sample, image in of_sample.items())
    assert n_changed > 0.9 * len(of_sample)
    other = _batches(dataset, seed=1)
    assert not any(
        image.equal(of_sample[sample]) for image, sample in zip(other[0][0][:5], other[0][2][:5], strict=True)
    )


def test_ranks_and_a_resumed_run_have_the_same_images(dataset: st.Dataset) -> None:
    whole = _batches(dataset)
    shares = [_batches(dataset, rank=rank, world_size=2) for rank in range(2)]
    of_sample = {s: image for images, _, samples in whole for image, s in zip(images, samples, strict=True)}
    for images, _, samples in shares[0] + shares[1]:
        assert all(image.equal(of_sample[sample]) for image, sample in zip(images, samples, strict=True))
    options: dict[str, Any] = {"batch_size": 16, "decode": {"image": st.Images(20)}, "lanes": 8, "groups": 4}
    with st.StreamLoader(dataset, **options) as loader:
        taken = iter(loader)
        for _ in range(3):
            next(taken)
        state = loader.state_dict()
    with st.StreamLoader(dataset, **options) as loader:
        loader.load_state_dict(state)
        rest = [(batch.image.clone(), batch.y.clone(), loader.last_samples().tolist()) for batch in loader]
    assert _equal(rest, whole[3:])


def test_a_state_of_images_decoded_otherwise_is_refused(dataset: st.Dataset) -> None:
    def loader(how: st.Images) -> st.StreamLoader:
        return st.StreamLoader(dataset, batch_size=16, decode={"image": how})

    with loader(st.Images(20, scale=(0.5, 1.0))) as one:
        state = one.state_dict()
    others = (st.Images(20), st.Images(24, scale=(0.5, 1.0)), st.Images(20, crop="center"))
    for other in others:
        there, here = (f"image: {how!r}" for how in (st.Images(20, scale=(0.5, 1.0)), other))
        with loader(other) as wrong, pytest.raises(UsageError, match="of another loader") as refused:
            wrong.load_state_dict(state)
        assert refused.value.why == f"decode: {there!r} there, {here!r} here"
    with loader(st.Images(20, scale=(0.5, 1.0))) as same:
        same.load_state_dict(state)


def test_random_crops_cover_what_they_are_asked_for() -> None:
    how = st.Images(32)
    boxes, flips = zip(*(crop_of(how, (400, 300), key) for key in range(2**40, 2**40 + 2000)), strict=True)
    left, top, right, bottom = np.array(boxes).T
    areas, ratios = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert 0.078 < areas.min() < 0.1
    assert 0.9 < areas.max() <= 1
    assert 0.74 < ratios.min() < ratios.max() < 1.35
    assert left.min() == top.min() == 0
    assert right.max() == 400
    assert bottom.max() == 300
    assert 0.46 < np.mean(flips) < 0.54
    assert not any(crop_of(st.Images(32, flip=0.0), (400, 300), key)[1] for key in range(50))
    # Nothing of a strip is as wide as it is high: the part in its middle that is nearest to it.
    assert crop_of(st.Images(32, scale=(0.5, 1.0)), (1000, 10), 5)[0] == pytest.approx(
        (493.33, 0, 506.67, 10), abs=0.01
    )


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    down, across = np.mgrid[:512, :640]
    pixels = np.stack([(down / 3) % 256, (across / 4) % 256, (down + across) / 8], axis=-1).astype(np.uint8)
    data, how = encoded(pixels, quality=95), st.Images(64, crop="center", resize=64)
    found = np.empty(how.shape, np.uint8)
    decode_into(found, data, how, 0)
    whole = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR, box=(64, 0, 576, 512))
    assert np.abs(found.astype(int) - np.asarray(whole).astype(int)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_camera_was_held(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels_of(2, size=(30, 50)), exif=exif)
    for how in (st.Images(16, crop="none"), st.Images(16, crop="center", resize=16)):
        found = np.empty(how.shape, np.uint8)
        decode_into(found, data, how, 0)
        with Image.open(io.BytesIO(data)) as opened:
            upright = ImageOps.exif_transpose(opened)
            box = crop_of(how, upright.size, 0)[0]
            expected = np.asarray(upright.resize((16, 16), Image.Resampling.BILINEAR, box=box))
        assert (found == expected).all()


def test_stored_pixels_are_cropped_too(dataset: st.Dataset, tmp_path: Path) -> None:
    pixels = np.stack([pixels_of(i, size=(30, 40)) for i in range(24)])
    dense = st.ingest({"image": pixels, "y": np.arange(24) % 2}, tmp_path / "d")
    assert _batches(dense, decode=None, batch_size=8, lanes=None, groups=None)[0][0].shape == (8, 30, 40, 3)
    found = _batches(dense, decode={"image": st.Images(16)}, batch_size=8, lanes=None, groups=None)
    assert found[0][0].shape == (8, 3, 16, 16)
    whole = _batches(
        dense, decode={"image": st.Images(30, crop="none")}, batch_size=24, shuffle=False, lanes=None, groups=None
    )
    expected = np.asarray(Image.fromarray(pixels[5]).resize((30, 30), Image.Resampling.BILINEAR))
    assert (whole[0][0][5].permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize(
    ("decode", "told"),
    [
        (None, r"decode=\{'image': Images\(224\)\}"),
        ({"x": st.Images(20)}, "unknown field"),
        ({"y": st.Images(20)}, "no images"),
        ({"image": 20}, "maps fields"),
        ([st.Images(20)], "maps fields"),
    ],
)
def test_what_cannot_be_decoded_is_refused(decode: Any, told: str, dataset: st.Dataset) -> None:
    with pytest.raises(UsageError, match=told):
        st.StreamLoader(dataset, batch_size=16, decode=decode)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"crop": "middle"},
        {"mode": "CMYK"},
        {"flip": 2},
        {"scale": (0, 1)},
        {"ratio": (2, 1)},
        {"resize": 256},
        {"crop": "center", "resize": 10},
    ],
)
def test_arguments_of_images(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        st.Images(**{"size": 224, **options})


def test_images_are_values() -> None:
    how = st.Images(64, crop="center", resize=80, mode="L")
    assert repr(how) == "Images(64, crop='center', resize=80, mode='L')"
    assert eval(repr(how), {"Images": st.Images}) == how == pickle.loads(pickle.dumps(how))
    assert len({how, st.Images(64), st.Images(64)}) == 2
    assert st.Images(64).centered() == st.Images(64, crop="center")
    assert how.centered() is how


def test_the_budget_has_room_for_the_largest_image_in_every_thread(dataset: st.Dataset) -> None:
    with st.StreamLoader(dataset, batch_size=16, decode={"image": st.Images(20)}) as loader:
        images = dataset.stats("image").images
        assert images is not None
        assert loader.projection.terms["decoding"] > loader.sizes.threads * images.most_pixels * 8
    with pytest.raises(BudgetError, match="decoding"):
        st.StreamLoader(dataset, batch_size=16, decode={"image": st.Images(20)}, memory="2MB")


def test_images_are_decoded_by_the_host(dataset: st.Dataset) -> None:
    found = _batches(dataset, device=Placement(device="cpu", pool="host"))
    assert _equal(found, _batches(dataset))
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(UsageError, match="decoded on the host"):
        st.StreamLoader(
            dataset, batch_size=16, decode={"image": st.Images(20)}, device=Placement(device="cpu", pool="device")
        )


@pytest.fixture
def spoilt(dataset: st.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> st.Dataset:
    """A dataset with a sample that does not decode, although its checksum is right."""
    from streamtrain.ingestion.sources.images.image_check import ImageCheck
    from streamtrain.store.media.channels import MeasuredImage

    stored = ImageCheck.stored

    def damaged(self: ImageCheck, data: bytes, where: str) -> MeasuredImage:
        found = stored(self, data, where)
        if where.endswith("dog/005.jpg"):
            spoilt = MeasuredImage(b"\xff\xd8\xff" + bytes(len(data) - 3))
            spoilt.measures = found.measures
            return spoilt
        return found

    monkeypatch.setattr(ImageCheck, "stored", damaged)
    shutil.rmtree(tmp_path / "in", ignore_errors=True)
    class_folders(tmp_path / "in", 40)
    return st.ingest(tmp_path / "in", tmp_path / "d", block="6KB")


def test_a_sample_that_does_not_decode_is_named(spoilt: st.Dataset) -> None:
    assert not st.verify(spoilt.path, full=True).damage
    with pytest.raises(DamagedSample) as caught:
        _batches(spoilt)
    block = 45 // spoilt.layout.block_rows
    assert (caught.value.field, caught.value.sample, caught.value.block) == ("image", 45, block)
    assert caught.value.where == str(spoilt.shard_path("image", block // spoilt.layout.shard_blocks))
    assert caught.value.exit_code == 4


def test_its_block_can_be_left_out(spoilt: st.Dataset) -> None:
    with pytest.warns(st.StreamtrainWarning, match="left out"):
        found = _batches(spoilt, 2, on_bad_block="quarantine")
    start, stop = spoilt.layout.block_range(45 // spoilt.layout.block_rows)
    second = {sample for _, _, samples in found[-8:] for sample in samples}
    assert second == set(range(120)) - set(range(start, stop))


def test_a_sample_read_by_its_number_is_named_too(spoilt: st.Dataset) -> None:
    seen = with_images(spoilt, {"image": st.Images(16)})
    reads = (
        lambda: seen[40:50],
        lambda: seen[45],
        lambda: seen[-75],
        lambda: list(seen),
        lambda: seen.__getitems__([45]),
    )
    for read in reads:
        with pytest.raises(DamagedSample, match="sample 45 of field image") as caught:
            read()
        assert caught.value.sample == 45
    stop = spoilt.layout.block_range(45 // spoilt.layout.block_rows)[1]
    assert len(first_rows(seen, 120, forgiving=True)["image"]) == 120 - stop
