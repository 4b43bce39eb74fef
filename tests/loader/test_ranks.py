"""Loaders of ranks that share an epoch: together they have the batches of one process, whatever the number of ranks."""

import os
import pickle
import sys
import textwrap
import types
from contextlib import ExitStack
from itertools import chain

import numpy as np
import pytest
import torch
from forked_python import Forked

import streamtrain
from streamtrain import StreamLoader, uniform
from streamtrain.errors import StreamtrainWarning, UsageError
from streamtrain.loader import world

BATCH = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make datasets of rows that hold their own number."""
    folder, made = tmp_path_factory.mktemp("ranks"), {}

    def dataset(n):
        if n not in made:
            made[n] = streamtrain.ingest(
                {"y": np.arange(n), "x": np.arange(n, dtype=np.float32)[:, None]}, folder / str(n), block="60B"
            )
        return made[n]

    return dataset


def share(dataset, rank, world_size, **how):
    how = {"batch_size": BATCH, "memory": "16MB", "groups": 8} | how
    return StreamLoader(dataset, rank=rank, world_size=world_size, **how)


def epochs(dataset, world_size, n_epochs=2, **how):
    """The samples of each batch of each rank, as ``[epoch][batch][rank]``."""
    with ExitStack() as stack:
        loaders = [stack.enter_context(share(dataset, rank, world_size, **how)) for rank in range(world_size)]
        found = []
        for _ in range(n_epochs):
            batches = [[batch.y.tolist() for batch in loader] for loader in loaders]
            assert {len(each) for each in batches} == {len(loaders[0])}
            found.append([list(shares) for shares in zip(*batches, strict=True)])
        return found


def together(found):
    return [[sorted(chain.from_iterable(shares)) for shares in epoch] for epoch in found]


@pytest.mark.parametrize("n", [320, 321, 325, 323])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("drop_last", [True, False])
def test_ranks_together_have_the_batches_of_one_process(data, n, shuffle, drop_last):
    how = {"shuffle": shuffle, "drop_last": drop_last}
    alone = together(epochs(data(n), 1, **how))
    for world_size in (2, 4, 8):
        found = epochs(data(n), world_size, **how)
        assert together(found) == alone
        for epoch in found:
            for shares in epoch[: n // BATCH]:
                assert {len(each) for each in shares} == {BATCH // world_size}
            sizes = [len(each) for each in epoch[-1]]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 2), (2, 8), (8, 1)])
def test_a_state_resumes_with_another_number_of_ranks(data, before, after):
    whole = together(epochs(data(325), 1))
    for batch in (0, 7, 20):
        with share(data(325), before - 1, before) as loader:
            batches = iter(loader)
            for _ in range(batch):
                next(batches)
            state = loader.state_dict()
        shares = []
        for rank in range(after):
            with share(data(325), rank, after) as loader:
                loader.load_state_dict(state)
                shares.append([each.y.tolist() for each in loader])
        assert together([zip(*shares, strict=True)]) == [whole[0][batch:]]


def test_a_share_tells_its_samples_and_sizes(data):
    for rank in range(2):
        with share(data(321), rank, 2) as loader:
            assert (loader.rank, loader.world_size, loader.local_batch_size, len(loader)) == (rank, 2, 8, 21)
            scales = []
            for batch in loader:
                assert loader.last_samples().tolist() == batch.y.tolist()
                scales.append(loader.grad_scale)
            assert scales == [1.0] * 20 + [2.0 if rank == 0 else 0.0]
            assert loader.grad_scale == scales[-1]


def test_an_empty_share_is_a_batch_without_rows(data):
    def with_noise(batch, keys):
        return batch._replace(x=batch.x + uniform(keys, (1,)))

    for transform in (None, lambda batch: batch._replace(x=batch.x * 2), with_noise):
        with share(data(321), 1, 2, transform=transform) as loader:
            *_, last = loader
            assert last.x.shape == (0, 1)
            assert last.x.dtype == torch.float32
            assert last.y.dtype == torch.int64
            assert len(loader.last_samples()) == 0


def test_noise_by_sample_is_the_same_on_any_rank(data):
    def noise(batch, keys):
        return batch._replace(x=uniform(keys, (1,)))

    def numbers(world_size):
        found = {}
        for rank in range(world_size):
            with share(data(325), rank, world_size, transform=noise) as loader:
                found |= {int(y): float(x) for batch in loader for x, y in zip(batch.x, batch.y, strict=True)}
        return found

    assert numbers(4) == numbers(1)


def test_sequential_deals_blocks_that_are_each_read_once(data):
    dataset, n_read, found = data(323), 0, []
    for rank in range(4):
        with share(dataset, rank, 4) as loader, loader.sequential() as ordered:
            batches = [batch.y.tolist() for batch in ordered]
            assert len(batches) == len(ordered)
            found += chain.from_iterable(batches)
            n_read += ordered.blocks_read
    assert found == list(range(323))
    assert n_read <= dataset.layout.n_blocks + 3  # reading on into the next epoch


def test_a_share_stays_within_its_budget_and_reads_its_own_blocks(data):
    reads = []
    for world_size in (1, 2):
        with share(data(3210), 0, world_size, memory="4MB") as loader:
            assert loader.projection.total_bytes <= 4_000_000
            for _ in loader:
                pass
            reads.append(loader.blocks_read)
    assert reads[1] < 0.75 * reads[0]


def distributed(rank, n_ranks):
    return types.SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: n_ranks > 0,
        get_world_size=lambda: n_ranks,
        get_rank=lambda: rank,
    )


def test_a_process_group_is_taken_over_when_an_epoch_begins(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed(0, 0))
    with StreamLoader(data(320), batch_size=BATCH, memory="16MB") as loader:
        whole = [batch.y.tolist() for batch in loader]
        monkeypatch.setitem(sys.modules, "torch.distributed", distributed(1, 2))
        assert (loader.rank, loader.world_size) == (1, 2)
        loader.set_epoch(0)
        assert [batch.y.tolist() for batch in loader] == [batch[1::2] for batch in whole]
        batches = iter(loader)
        next(batches)
        monkeypatch.setitem(sys.modules, "torch.distributed", distributed(0, 4))
        assert loader.world_size == 2
        with pytest.raises(UsageError, match="has 4 ranks, and this epoch began with 2"):
            loader.state_dict()


@pytest.mark.parametrize(
    ("how", "message", "fix"),
    [
        ({"rank": 1}, "rank is 1 and world_size is None", "both of them"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of a world_size of 2", "count from 0"),
        ({"rank": -1, "world_size": 2}, "rank is -1", ""),
        ({"rank": 0, "world_size": 3}, "16 samples cannot be shared by 3 ranks", "batch_size=15"),
        ({"rank": 0, "world_size": 4, "groups": 2}, "2 groups of lanes cannot be shared by 4 ranks", "groups=4"),
    ],
)
def test_what_cannot_be_shared_is_refused(data, how, message, fix):
    with pytest.raises(UsageError) as caught:
        StreamLoader(data(320), **{"batch_size": BATCH, "memory": "16MB"} | how)
    assert message in str(caught.value)
    assert fix in str(caught.value)


def test_grad_scale_is_refused_where_samples_may_be_left_out(data):
    with share(data(320), 0, 2, on_bad_block="quarantine") as loader, pytest.raises(UsageError, match="not known"):
        loader.grad_scale  # noqa: B018


def test_a_launcher_without_a_group_is_told(data, monkeypatch):
    monkeypatch.setattr(world, "_told", [])
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "1")
    with StreamLoader(data(320), batch_size=BATCH, memory="16MB") as loader:
        with pytest.warns(StreamtrainWarning, match="name 4 processes, but torch.distributed has no process group"):
            found = [batch.y.tolist() for batch in loader]
        list(loader)
    assert sorted(chain.from_iterable(found)) == list(range(320))
    with share(data(320), 1, 4) as loader:
        list(loader)


LOOP = textwrap.dedent(
    """
    import pickle, sys
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional  # before the group, which it would keep alive
    import streamtrain as st

    dataset, store, rank, world_size, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    if world_size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size)
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with st.StreamLoader(dataset, batch_size=16, memory="16MB", seed=3) as loader:
        assert (loader.rank, loader.world_size) == (rank, world_size)
        for epoch in range(3):
            for batch in loader:
                x, y = batch.x / 320, torch.sin(batch.y / 50).float()[:, None]
                loss = torch.nn.functional.mse_loss(model(x), y, reduction="sum") / max(len(y), 1) * loader.grad_scale
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    with open(out, "wb") as file:
        pickle.dump([p.detach().numpy() for p in model.parameters()], file)
    if world_size > 1:
        dist.destroy_process_group()
    """
)


def test_a_loop_of_ones_own_under_ddp_has_the_weights_of_one_process(data, tmp_path):
    path = data(325).path

    def weights(world_size):
        outs = [tmp_path / f"{world_size}-{rank}" for rank in range(world_size)]
        args = [
            [str(path), str(tmp_path / f"store{world_size}"), str(r), str(world_size), str(outs[r])]
            for r in range(world_size)
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with ExitStack() as stack:
            running = [stack.enter_context(Forked(["-c", LOOP, *each], env=environment)) for each in args]
            for process in running:
                stack.callback(process.kill)
            ended = [process.communicate(120) for process in running]
        assert [process.returncode for process in running] == [0] * world_size, ended
        return [pickle.loads(out.read_bytes()) for out in outs]

    [alone], pair = weights(1), weights(2)
    for mine, theirs, expected in zip(*pair, alone, strict=True):
        assert np.array_equal(mine, theirs)
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
