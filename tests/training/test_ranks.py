"""A Trainer on ranks that share the batches of its loaders: what one process comes to, whatever their number."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes_of_ranks import ended, started

import streamtrain as st
from streamtrain.errors import StreamtrainWarning, UsageError
from streamtrain.loader.quarantine import QuarantinedBlock
from streamtrain.optim.ranks.exchange import Exchange
from streamtrain.training import ranks

pytestmark = pytest.mark.usefixtures("one_thread")

CASES: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
    "clipped": {"optimizer": "sgd", "lr": 0.1, "clip_grad_norm": 0.5, "l2": 0.01},
    "weighted": {"optimizer": "sgd", "lr": 0.1, "weight": "w"},
    "accumulated": {"optimizer": "sgd", "lr": 0.1, "accumulate_grad_batches": 3},
    "compensated": {"optimizer": "sgd", "lr": 0.1, "accumulate_grad_batches": 3, "grad_sum_dtype": "compensated"},
    "epoch": {"update": "epoch", "lr": 0.01},
    "lbfgs": {"optimizer": "lbfgs", "update": "epoch"},
    "cg": {"optimizer": "cg", "update": "epoch"},
}
N_EPOCHS = 2

TRAIN = textwrap.dedent(
    """
    import hashlib, json, os, sys, warnings
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional  # before the group, which it would keep alive
    import streamtrain as st

    def weights(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def train(folder, how, **fit):
        torch.manual_seed(int(os.environ.get("RANK", 0)))  # the first rank's weights are everybody's
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        trainer = st.Trainer(model, loss="cross_entropy", device="cpu", **how)
        given = {"batch_size": 24, "memory": "16MB"}
        with (
            st.StreamLoader(f"{folder}/train.zarr", seed=1, **given) as loader,
            st.StreamLoader(f"{folder}/val.zarr", shuffle=False, **given) as val,
        ):
            history = trainer.fit(loader, val=val, progress=False, **fit)
            measured = trainer.evaluate(val)
        return {
            "weights": weights(model).tolist(),
            "epochs": [[each.train.loss, each.train.score, each.val.loss, each.val.score] for each in history],
            "counts": [history.counts.n_batches, history.counts.n_steps, history.counts.n_samples],
            "measured": [measured.loss, measured.n_samples, measured.scores["f1"]],
        }

    if __name__ == "__main__":
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        folder, rank, world_size = sys.argv[1], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(f"{folder}/store{world_size}", world_size)
        if world_size > 1:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        found = [train(folder, how, **fit) for how, fit in json.loads(sys.argv[2])]
        print(json.dumps(found))
        if world_size > 1:
            dist.destroy_process_group()
    """
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("ranks"), np.random.default_rng(0)
    for name, n in (("train", 24 * 20 + 1), ("val", 77)):
        x = chance.normal(size=(n, 6)).astype(np.float32)
        y = (x[:, :3] + chance.normal(size=(n, 3))).argmax(1)
        st.ingest({"x": x, "y": y, "w": chance.random(n).astype(np.float32)}, folder / f"{name}.zarr", block="400B")
    (folder / "ranks.py").write_text(TRAIN)
    return folder


def trained(folder: Path, world_size: int, cases: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Any]:
    """Train each case one after the other on so many ranks; return what each rank has of each."""
    (folder / f"store{world_size}").unlink(missing_ok=True)
    with started([str(folder / "ranks.py"), str(folder), json.dumps(cases)], world_size, folder) as running:
        done = ended(running)
    assert [code for code, _, _ in done] == [0] * world_size, done
    return [json.loads(out) for _, out, _ in done]


def relative(found: list[float], expected: list[float]) -> float:
    """The largest difference of weights, relative to the largest weight."""
    mine, theirs = torch.tensor(found), torch.tensor(expected)
    return float((mine - theirs).abs().max() / theirs.abs().max())


WHOLE = {"max_epochs": N_EPOCHS}
CUTS = {"sgd": {"max_steps": 9}, "accumulated": {"max_steps": 3}, "epoch": {"max_epochs": 1, "checkpoint_every": 7}}
"""Runs that end early, and go on with another number of ranks."""


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """Everything that is looked at, from as few processes as will do: most of their time they import torch."""

    def kept(name: str, world_size: int) -> dict[str, Any]:
        return {"checkpoint": str(folder / f"{name}{world_size}"), "resume": "auto"}

    def cut(world_size: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(CASES[name], limit | kept(name, world_size)) for name, limit in CUTS.items()]

    def resumed(world_size: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [(CASES[name], WHOLE | kept(name, world_size)) for name in CUTS]

    whole = [(how, WHOLE) for how in CASES.values()]
    adam: dict[str, Any] = {"optimizer": "adam"}
    again = [(adam, WHOLE), (adam, {"max_steps": 9} | kept("adam", 2)), (adam, WHOLE | kept("adam", 2))]
    alone = trained(folder, 1, whole + cut(1))
    both = trained(folder, 2, whole + again + cut(2) + resumed(1))
    after = trained(folder, 1, resumed(2))
    assert both[0] == both[1], "the ranks have the same, to the last bit"
    n = len(whole)
    return {
        "alone": dict(zip(CASES, alone[0], strict=False)),
        "both": dict(zip(CASES, both[0], strict=False)),
        "undisturbed": both[0][n],
        "again": both[0][n + 2],
        "1 to 2": dict(zip(CUTS, both[0][-len(CUTS) :], strict=True)),
        "2 to 1": dict(zip(CUTS, after[0], strict=True)),
    }


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_come_to_what_one_process_comes_to(found: dict[str, Any], name: str) -> None:
    mine, alone = found["both"][name], found["alone"][name]
    assert relative(mine["weights"], alone["weights"]) < 1e-6
    assert mine["counts"] == alone["counts"]
    np.testing.assert_allclose(mine["epochs"], alone["epochs"], rtol=1e-5)
    np.testing.assert_allclose(mine["measured"], alone["measured"], rtol=1e-5)


@pytest.mark.parametrize("way", ["1 to 2", "2 to 1"])
@pytest.mark.parametrize("name", CUTS)
def test_a_run_goes_on_with_another_number_of_ranks(found: dict[str, Any], way: str, name: str) -> None:
    mine, alone = found[way][name], found["alone"][name]
    assert relative(mine["weights"], alone["weights"]) < 1e-6
    assert mine["counts"] == alone["counts"]
    np.testing.assert_allclose(mine["epochs"][-1], alone["epochs"][-1], rtol=1e-5)


def test_two_ranks_go_on_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["again"]["weights"] == found["undisturbed"]["weights"]
    assert found["again"]["epochs"][-1] == found["undisturbed"]["epochs"][-1]


class Two(Exchange):
    """Two ranks, of which the other has found these."""

    world_size = 2

    def __init__(self, others: Any = None) -> None:
        super().__init__()
        self._others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, self._others]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"the last batch of an epoch has 1 sample for 2 ranks.*another batch_size"),
        ({"drop_last": True, "on_bad_block": "quarantine"}, r"lose all rows of a rank.*on_bad_block='error'"),
        ({"drop_last": True}, None),
    ],
)
def test_layers_that_wait_for_all_ranks_are_given_rows(folder: Path, options: dict[str, Any], told: str | None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.SyncBatchNorm(3))
    with st.StreamLoader(folder / "train.zarr", batch_size=24, memory="16MB", **options) as loader:
        if told is None:
            ranks._refuse_empty_share(Two(), model, loader)
        else:
            with pytest.raises(UsageError, match=told):
                ranks._refuse_empty_share(Two(), model, loader)
        ranks._refuse_empty_share(Two(), model[0], loader)


def test_what_another_rank_has_left_out_is_told(folder: Path) -> None:
    out = QuarantinedBlock(field="x", block=3, file="x/c/0", samples=(48, 64), why="a wrong checksum")
    options: dict[str, Any] = {"batch_size": 24, "memory": "16MB", "on_bad_block": "quarantine"}
    with st.StreamLoader(folder / "train.zarr", **options) as loader:
        with pytest.warns(StreamtrainWarning, match="left out: block 3"):
            ranks.share_left_out(Two([(out,)]), [loader])
        assert loader.quarantined == (out,)


def test_a_share_without_a_process_group_is_refused(folder: Path) -> None:
    trainer = st.Trainer(torch.nn.Linear(6, 3), loss="cross_entropy", device="cpu")
    with st.StreamLoader(folder / "train.zarr", batch_size=24, memory="16MB", rank=0, world_size=2) as loader:
        for use in (lambda: trainer.fit(loader, max_epochs=1), lambda: trainer.evaluate(loader)):
            with pytest.raises(UsageError, match=r"a share of 2 ranks, and torch\.distributed has 1"):
                use()
