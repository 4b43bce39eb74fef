"""The loader in the Trainer of transformers, and its state in that one's checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from engine_runs import N_BATCHES, Ids, Net, assert_each_once, call_named, ids_in_order, new_loader, run

import streamtrain as st

AT = 50


class Model(Net):
    """The net as this Trainer has it: the names of a batch come in, and the loss goes out."""

    def forward(self, x: Any, y: Any) -> Any:
        from torch.nn.functional import cross_entropy

        return {"loss": cross_entropy(super().forward(x), y)}


def new_trainer(model: Model, loader: st.StreamLoader, callbacks: list[Any] | None = None, **how: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    class FromLoader(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

    options = {"num_train_epochs": 1, "report_to": [], "use_cpu": True, "save_strategy": "no", **how}
    arguments = TrainingArguments("out", per_device_train_batch_size=64, disable_tqdm=True, **options)
    return FromLoader(model, arguments, callbacks=callbacks)


def train(data: str) -> list[Any]:
    model = Model()
    with new_loader(data, as_dict=True) as loader:
        trainer = new_trainer(model, loader, num_train_epochs=2)
        trainer.train()
    assert trainer.args.world_size == int(os.environ["WORLD_SIZE"])
    return [trainer.state.global_step, model.seen[:N_BATCHES], model.seen[N_BATCHES:]]


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_each_sample_comes_once_an_epoch(data: str, tmp_path: Path, n_ranks: int) -> None:
    told = run(train, n_ranks, tmp_path, data)
    assert [steps for steps, *_ in told] == [2 * N_BATCHES] * n_ranks
    for epoch in (1, 2):
        assert_each_once([of_rank[epoch] for of_rank in told])
    assert told[0][1:] == [ids_in_order(data, 0, n_ranks, epoch=epoch) for epoch in range(2)]


def resume(data: str, at: str, restores: str) -> Ids:
    """Train up to a checkpoint, then from there on in a trainer and a loader of their own; return what came then."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == int(at)

    how = {
        "save_strategy": "steps",
        "save_steps": int(at),
        "ignore_data_skip": True,
        "num_train_epochs": 2,
        "restore_callback_states_from_checkpoint": restores == "restored",
    }
    with new_loader(data, as_dict=True) as loader:
        new_trainer(Model(), loader, [st.HFLoaderState(loader), Stop()], **how).train()
    model = Model()
    with new_loader(data, as_dict=True) as loader:
        trainer = new_trainer(model, loader, [st.HFLoaderState(loader)], **how)
        trainer.train(resume_from_checkpoint=f"out/checkpoint-{at}")
        assert "set_epoch" not in vars(loader)
    assert trainer.state.global_step == 2 * N_BATCHES
    return model.seen


@pytest.mark.parametrize(
    ("n_ranks", "at", "restores"),
    [(1, AT, "kept"), (2, AT, "kept"), (1, N_BATCHES, "kept"), (1, N_BATCHES + AT, "restored")],
)
def test_a_checkpoint_goes_on_with_the_next_batch(
    data: str, tmp_path: Path, n_ranks: int, at: int, restores: str
) -> None:
    for rank, seen in enumerate(run(resume, n_ranks, tmp_path, data, str(at), restores)):
        both = ids_in_order(data, rank, n_ranks) + ids_in_order(data, rank, n_ranks, epoch=1)
        assert [len(batch) for batch in seen] == [len(batch) for batch in both[at:]]
        assert seen == both[at:]


def resume_accumulating(data: str) -> list[int]:
    """Resume after 10 steps on 4 batches each; return the batches that came then, and the last step."""
    how = {"save_strategy": "steps", "save_steps": 10, "gradient_accumulation_steps": 4, "ignore_data_skip": True}
    with new_loader(data, as_dict=True) as loader:
        new_trainer(Model(), loader, [st.HFLoaderState(loader)], **how).train()
    model = Model()
    with new_loader(data, as_dict=True) as loader:
        trainer = new_trainer(model, loader, [st.HFLoaderState(loader)], **how)
        trainer.train(resume_from_checkpoint="out/checkpoint-10")
    assert model.seen == ids_in_order(data)[40:]
    return [len(model.seen), trainer.state.global_step]


def test_a_resumed_epoch_s_last_batches_take_no_step_where_they_do_not_fill_one(data: str, tmp_path: Path) -> None:
    # Undisturbed, the Trainer takes a step on them; the manual says so.
    assert run(resume_accumulating, 1, tmp_path, data) == [[N_BATCHES - 40, 10 + (N_BATCHES - 40) // 4]]


def refused(data: str) -> list[str]:
    """What the Trainer cannot do with a loader: skip batches, and take it for a dataset of samples."""
    from transformers import Trainer, TrainingArguments

    told = []
    how = {"save_strategy": "steps", "save_steps": AT}
    with new_loader(data, as_dict=True) as loader:
        trainer = new_trainer(Model(), loader, [st.HFLoaderState(loader)], **how)
        trainer.train()
        try:
            trainer.train(resume_from_checkpoint=f"out/checkpoint-{AT}")
        except AttributeError as error:
            told.append(str(error))
        arguments = TrainingArguments("out", report_to=[], use_cpu=True, disable_tqdm=True)
        try:
            Trainer(Model(), arguments, train_dataset=loader).train()
        except st.UsageError as error:
            told.append(str(error))
    return told


def test_what_does_not_work_ends_in_an_error(data: str, tmp_path: Path) -> None:
    skipped, batched = run(refused, 1, tmp_path, data)[0]
    assert "sampler" in skipped
    assert "DataLoader would put several batches" in batched


if __name__ == "__main__":
    call_named(globals())
