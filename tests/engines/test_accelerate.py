"""The loader beside accelerate's prepare, in it, and in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_runs import (
    N_BATCHES,
    Ids,
    Net,
    assert_each_once,
    call_named,
    ids_in_order,
    new_loader,
    run,
    run_failing,
)

AT = 50


def made(data: str, *, in_prepare: bool = False, **how: Any) -> tuple[Any, ...]:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, **how)
    net, loader = Net(), new_loader(data)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if in_prepare:
        model, optimizer, same = accelerator.prepare(net, optimizer, loader)
        assert same is loader, "a loader is left alone"
    else:
        model, optimizer = accelerator.prepare(net, optimizer)
    return accelerator, net, model, optimizer, loader


def step(accelerator: Any, model: Any, optimizer: Any, batch: Any) -> bool:
    from torch.nn.functional import cross_entropy

    before = accelerator.unwrap_model(model).layer.weight.detach().clone()
    accelerator.backward(cross_entropy(model(batch.x), batch.y))
    optimizer.step()
    optimizer.zero_grad()
    return bool((accelerator.unwrap_model(model).layer.weight != before).any())


def train(data: str, in_prepare: str) -> Ids:
    accelerator, net, model, optimizer, loader = made(data, in_prepare=in_prepare == "in")
    for batch in loader:
        step(accelerator, model, optimizer, batch)
    loader.close()
    accelerator.end_training()
    return net.seen


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("in_prepare", ["beside", "in"])
def test_each_sample_comes_once(data: str, tmp_path: Path, n_ranks: int, in_prepare: str) -> None:
    assert_each_once(run(train, n_ranks, tmp_path, data, in_prepare))


def resume(data: str) -> dict[str, Any]:
    accelerator, net, model, optimizer, loader = made(data)
    accelerator.register_for_checkpointing(loader)
    for number, batch in enumerate(loader, 1):
        step(accelerator, model, optimizer, batch)
        if number == AT:
            accelerator.save_state("state")
            accelerator.wait_for_everyone()
            break
    n_before = len(net.seen)
    accelerator.load_state("state")
    for batch in loader:
        step(accelerator, model, optimizer, batch)
    loader.close()
    expected = ids_in_order(data, accelerator.process_index, accelerator.num_processes)
    accelerator.end_training()
    return {"first": net.seen[:n_before] == expected[:AT], "rest": net.seen[n_before:] == expected[AT:]}


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_a_checkpoint_goes_on_with_the_next_batch(data: str, tmp_path: Path, n_ranks: int) -> None:
    assert run(resume, n_ranks, tmp_path, data) == [{"first": True, "rest": True}] * n_ranks


def accumulate(data: str) -> list[int]:
    accelerator, _, model, optimizer, loader = made(data, gradient_accumulation_steps=4)
    steps = []
    for epoch in range(2):
        for number, batch in enumerate(loader, epoch * N_BATCHES + 1):
            with accelerator.accumulate(model):
                if step(accelerator, model, optimizer, batch):
                    steps.append(number)
    loader.close()
    return steps


def test_the_batches_left_over_of_an_epoch_go_into_the_next_one_s_first_step(data: str, tmp_path: Path) -> None:
    # It sees the end of its own loaders only, and the manual says so.
    assert run(accumulate, 1, tmp_path, data) == [list(range(4, 2 * N_BATCHES + 1, 4))]


def skip(data: str) -> str:
    from accelerate import skip_first_batches

    with new_loader(data) as loader:
        try:
            skip_first_batches(loader, AT)
        except AttributeError as error:
            return str(error)
    return "skipped"


def test_batches_are_not_skipped_by_reading_rows(data: str, tmp_path: Path) -> None:
    assert "sampler" in run(skip, 1, tmp_path, data)[0]


def dispatch(data: str) -> Ids:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    net = Net()
    with new_loader(data) as loader:
        for batch in accelerator.prepare(DataLoader(loader, batch_size=None)):
            net(batch.x)
    return net.seen


def test_a_data_loader_around_it_is_read_in_one_process(data: str, tmp_path: Path) -> None:
    assert_each_once(run(dispatch, 1, tmp_path, data))


def test_a_data_loader_around_it_is_refused_in_two(data: str, tmp_path: Path) -> None:
    error = run_failing(dispatch, 2, tmp_path, data)
    assert "accelerate reads this DataLoader in one process for all 2" in error
    assert "give prepare() the StreamLoader itself" in error


if __name__ == "__main__":
    call_named(globals())
