"""Images in a trainer: their channels' statistics, and the same weights as of pixels decoded beforehand."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import streamtrain as st
from streamtrain.errors import UsageError
from streamtrain.loader.decode.image_dataset import ImageDataset, with_images
from tests.support.images import class_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> st.Dataset:
    root = tmp_path_factory.mktemp("images")
    class_folders(root / "in", 16)
    return st.ingest(root / "in", root / "d")


class _Float(nn.Module):
    """Bytes as floats, where nothing rescales them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        _Float(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def _trainer(**options: object) -> st.Trainer:
    return st.Trainer(_net(), loss="cross_entropy", inputs=("image",), device="cpu", **options)  # type: ignore[arg-type]


def test_weights_are_those_of_the_same_pixels_decoded_beforehand(dataset: st.Dataset, tmp_path: Path) -> None:
    how = st.Images(12, crop="center")
    with st.StreamLoader(dataset, batch_size=48, shuffle=False, decode={"image": how}) as loader:
        pixels = next(iter(loader)).image.numpy()
    dense = st.ingest({"image": pixels, "y": dataset[:]["y"]}, tmp_path / "d", block="2KB")
    weights = []
    for data, decode in ((dataset, {"image": how}), (dense, None)):
        trainer = _trainer(normalize=None)
        with st.StreamLoader(data, decode=decode, shuffle=False, batch_size=8) as loader:
            trainer.fit(loader, max_epochs=2, progress=False)
        weights.append([weight.detach().clone() for weight in trainer.model.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other)


def test_channels_have_a_scale_each(dataset: st.Dataset) -> None:
    trainer = _trainer(normalize="auto")
    trainer.fit(dataset, decode={"image": st.Images(12)}, max_epochs=1, batch_size=16, progress=False)
    (found,) = trainer._normalized_model.modules_by_input().values()
    stats = dataset.stats("image")
    np.testing.assert_allclose(found.mean.numpy().ravel(), stats.mean, rtol=1e-6)
    np.testing.assert_allclose(found.std.numpy().ravel(), stats.std, rtol=1e-6)
    usual = _trainer(normalize="imagenet")
    usual.fit(dataset, decode={"image": st.Images(12)}, max_epochs=1, batch_size=16, progress=False)
    (found,) = usual._normalized_model.modules_by_input().values()
    np.testing.assert_allclose(found.mean.numpy().ravel(), [123.675, 116.28, 103.53])


def test_a_trainer_measures_and_predicts_by_the_middle(dataset: st.Dataset) -> None:
    trainer = _trainer(normalize="auto")
    trainer.fit(dataset, val=dataset, decode={"image": st.Images(12)}, max_epochs=1, batch_size=16, progress=False)
    measured = trainer.evaluate(dataset)
    with st.StreamLoader(dataset, decode={"image": st.Images(12, crop="center")}, shuffle=False) as loader:
        assert trainer.evaluate(loader).loss == pytest.approx(measured.loss)
    last = trainer.history.last
    assert last is not None
    assert last.val is not None
    assert last.val.loss == pytest.approx(measured.loss)
    assert trainer.predict(dataset).tolist() == trainer.predict(dataset, batch_size=5).tolist()


def test_images_that_nobody_decodes_are_refused(dataset: st.Dataset) -> None:
    with pytest.raises(UsageError, match="decode="):
        _trainer().fit(dataset, max_epochs=1)
    with pytest.raises(UsageError, match="decode="):
        st.plan(dataset)
    assert st.plan(dataset, decode={"image": st.Images(12)}, batch_size=8).n_batches == 6


def test_a_dataset_seen_with_its_images_decoded(dataset: st.Dataset, tmp_path: Path) -> None:
    seen = with_images(dataset, {"image": st.Images(12)})
    assert [(field.name, field.shape) for field in seen.fields] == [("image", (3, 12, 12)), ("y", ())]
    rows = seen[:5]
    assert rows["image"].shape == (5, 3, 12, 12)
    assert (seen[3]["image"] == rows["image"][3]).all()
    assert (next(iter(seen))["image"] == rows["image"][0]).all()
    assert seen.id == dataset.id
    again = pickle.loads(pickle.dumps(seen))
    assert isinstance(again, ImageDataset)
    assert (again[2]["image"] == rows["image"][2]).all()
    gray = with_images(seen, {"image": st.Images(12, mode="L")})
    assert gray.stats("image").mean.shape == (1,)
    assert abs(gray.stats("image").mean[0] - gray[:]["image"].mean()) < 6
    pixels = np.stack([np.full((6, 8, 3), level, np.uint8) for level in (0, 10, 20, 30)])
    pixels[..., 1] += 100
    dense = with_images(st.ingest({"image": pixels}, tmp_path / "dense"), {"image": st.Images(6)})
    np.testing.assert_allclose(dense.stats("image").mean, [15, 115, 15])
    np.testing.assert_allclose(dense.stats("image").std, np.std([0, 10, 20, 30]))
