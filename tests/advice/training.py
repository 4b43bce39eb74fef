"""Worlds of training in Python: the model, its loss, its optimizer, its schedule and its stream."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import nn

import streamtrain as st
from streamtrain.training import sized_loaders
from tests.advice.world import World, X, Y, world

_LOADER = {
    "batch_size",
    "memory",
    "drop_last",
    "on_bad_block",
    "lanes",
    "groups",
    "seed",
    "shuffle",
    "transform",
    "timeout",
}
_FIT = {"max_epochs", "max_steps", "val", "checkpoint", "resume", "until_loss", "on_checkpoint_failure"}
_STREAM = "training/batch_stream.py:"
_OPTIMIZERS = "optim/optimizers.py:"
_SCHEDULES = "optim/schedules.py:"
_PREFLIGHT = "training/preflight.py:"
_ALIGNMENT = "models/alignment.py:"
_LOSSES = "models/losses.py:"
_SAMPLE_PATH = "optim/sample_fast_path/choice.py:SamplePathChoice."


def net(n_outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, n_outputs)


def fit(data: st.Dataset, model: nn.Module | None = None, *, on: Any = None, **given: Any) -> st.Trainer:
    """Train for an epoch; the arguments go to the loader, to ``fit`` or to the trainer, whichever has them."""
    loading = {"batch_size": 20, "memory": "16MB"} | {name: given[name] for name in given.keys() & _LOADER}
    fitting = {"max_epochs": 1} | {name: given[name] for name in given.keys() & _FIT}
    rest = {name: given[name] for name in given.keys() - _LOADER - _FIT}
    trainer = on or st.Trainer(model or net(), **{"loss": "cross_entropy", "device": "cpu"} | rest)
    with st.StreamLoader(data, **loading) as loader:
        trainer.fit(loader, progress=False, **fitting)
    return trainer


@world(
    "training/step_errors.py:name_missing_values: fill them, or leave their rows out, before the ingest; or a model of"
    " your own with torch.nan_to_num"
)
def missing_values_in_the_data(w: World) -> None:
    x = np.where(X > 1, np.nan, X)
    data = st.ingest({"x": x, "y": Y}, "gaps.zarr", nan="keep", progress=False)
    w.refused(fit, data)
    fit(data, nn.Sequential(Filled(), net()))
    fit(st.ingest({"x": np.nan_to_num(x), "y": Y}, "filled.zarr", progress=False))


class Filled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.nan_to_num()


def mended(w: World, wrong: dict[str, Any], *rights: dict[str, Any], data: st.Dataset | None = None) -> None:
    """Arguments that are refused, and what each remedy makes of them."""
    data = data or w.dataset()
    w.refused(fit, data, **wrong)
    for right in rights:
        fit(data, **right)


@world(f"{_STREAM}check_stream: batch_size={{}} or less", f"{_STREAM}check_stream: drop_last=False")
def streams_that_a_rule_cannot_train_on(w: World) -> None:
    data = w.dataset()
    w.followed(fit, data, update="epoch", drop_last=True)

    class Stream:
        def __init__(self, batch_size: int) -> None:
            self.dataset, self.batch_size, self.drop_last = data, batch_size, True
            self.shuffle, self.seed, self.wait_seconds = False, 0, 0.0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 60 // self.batch_size

        def __iter__(self) -> Any:
            yield from () if self.batch_size > 60 else [data[0:60]]

    trainer = st.Trainer(net(), loss="cross_entropy")
    w.followed(lambda batch_size: trainer.fit(Stream(batch_size), max_epochs=1, progress=False), batch_size=99)


@world(
    f"{_STREAM}check_weight_field: a field of scalars",
    f"{_STREAM}check_weights: weights of at least 0",
    f"{_STREAM}zero_weight_error: some weights above 0",
)
def weights_of_samples(w: World) -> None:
    ones = np.ones(60, "f4")
    wrong = {"a": X, "c": -ones, "d": 0 * ones}
    data = st.ingest({"x": X, "y": Y, "w": ones, **wrong}, w.folder / "d.zarr", progress=False)
    for name in wrong:
        w.refused(fit, data, weight=name)
    fit(data, weight="w")


@world(f"{_STREAM}zero_weight_error: another ignore_index")
def an_epoch_of_ignored_targets(w: World) -> None:
    data = w.dataset(y=np.zeros(60, "i8"), classes=3)
    w.refused(fit, data, loss=nn.CrossEntropyLoss(ignore_index=0))
    fit(data, loss=nn.CrossEntropyLoss(ignore_index=2))


@world(
    f"{_OPTIMIZERS}build_optimizer: requires_grad=True on those to be trained",
    f"{_OPTIMIZERS}_given_optimizer: set them where the optimizer is made, or name the optimizer as text",
    f"{_OPTIMIZERS}_given_optimizer: a name, an optimizer, or a factory (parameters) -> optimizer",
    f"{_OPTIMIZERS}_given_optimizer: return a torch.optim.Optimizer",
    f"{_OPTIMIZERS}_check_same_parameters: make it from model.parameters() of the same model object",
    f"{_OPTIMIZERS}_check_taken: leave it out",
    f"{_OPTIMIZERS}_make: see torch.optim for what it takes",
    f"{_OPTIMIZERS}build_optimizer: leave it out",
    f"{_OPTIMIZERS}_check_kinds: leave it out",
)
def optimizers(w: World) -> None:
    data, model = w.dataset(), net()
    of_model: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
    frozen = net()
    frozen.requires_grad_(False)
    w.refused(fit, data, frozen)
    frozen.requires_grad_(True)
    fit(data, frozen)
    w.refused(fit, data, model, optimizer=of_model(model.parameters()), lr=0.1)
    w.refused(fit, data, model, optimizer=5)
    w.refused(fit, data, model, optimizer=lambda parameters: None)
    w.refused(fit, data, model, optimizer=of_model(net().parameters()))
    w.refused(fit, data, model, optimizer="adam", momentum=0.9)
    w.refused(fit, data, model, optimizer="adadelta", rho=5.0)
    w.refused(fit, data, model, optimizer="adam", capturable=True)
    w.refused(fit, data, model, optimizer="adam", differentiable=True)
    fit(data, model, optimizer=of_model(model.parameters()))
    fit(data, model, optimizer=of_model)
    fit(data, model, optimizer="sgd", lr=0.1)
    fit(data, model, optimizer="adam")


@world(
    f"{_SCHEDULES}Schedule.__post_init__: give them in the factory",
    f"{_SCHEDULES}Schedule.known_as: a name, a Schedule, or a function of the optimizer",
    f"{_SCHEDULES}Schedule.make: return an LRScheduler",
    f"{_SCHEDULES}Schedule.make: every='epoch' of the schedule",
    f"{_SCHEDULES}Schedule._check_value: one of them",
)
def schedules_by_factory_or_name(w: World) -> None:
    factory = lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # noqa: E731
    w.refused(st.Schedule, name=factory, options={"gamma": 0.9})
    data = w.dataset()
    w.refused(fit, data, schedule=5)
    w.refused(fit, data, schedule=lambda optimizer: None)
    fit(data, schedule=st.Schedule(name=factory))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    w.refused(fit, data, schedule=st.Schedule(name=lambda optimizer: plateau(optimizer), every="step"))
    fit(data, schedule=st.Schedule(name=lambda optimizer: plateau(optimizer), every="epoch"))
    w.refused(st.Schedule, name="exponential", options={"gamma": torch.tensor(0.9)})
    fit(data, schedule=st.Schedule(name="exponential", options={"gamma": 0.9}))


@world(
    f"{_SCHEDULES}OptimizerSchedules.begin: a new trainer with options={{}} of the schedule",
    f"{_SCHEDULES}OptimizerSchedules._begin_beta1: beta1 as a function of the step, which has no end",
)
def schedules_with_an_end(w: World) -> None:
    data = w.dataset()
    trainer = fit(data, schedule="cosine", max_epochs=2)
    fix = w.refused(fit, data, on=trainer, max_epochs=4)
    (options,) = (part.value for part in fix.parts if getattr(part, "name", "") == "options")
    again = fit(data, schedule=st.Schedule(name="cosine", options=options), max_epochs=2)
    fit(data, on=again, max_epochs=4)
    trainer = fit(data, beta1="linear:0.5", max_epochs=2)
    w.refused(fit, data, on=trainer, max_epochs=4)
    again = fit(data, beta1=lambda step: 0.9 / step, max_epochs=2)
    fit(data, on=again, max_epochs=4)


@world(
    f"{_PREFLIGHT}check_width: end the model in {{}} outputs",
    f"{_PREFLIGHT}forward: return one tensor",
    f"{_PREFLIGHT}_backward: return the mean over the samples, or each one's loss",
    f"{_PREFLIGHT}_backward: a loss that takes an output of shape {{}}, and labels in its range",
)
def models_and_losses_that_do_not_fit(w: World) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Any) -> Any:
            return self.inner(x), x

    data = w.dataset()
    w.refused(fit, data, net(2))
    w.refused(fit, data, Pair())
    w.refused(fit, data, loss=lambda output, target: (output**2)[:, :2])
    w.refused(fit, data, loss=lambda output, target: nn.functional.nll_loss(output, target - 7))
    fit(data, net(3))
    fit(data, loss=lambda output, target: (output**2).mean())
    fit(data, loss=lambda output, target: (output**2).mean(1))


@world(f"{_PREFLIGHT}_no_broadcast: leave the axis of 1 out in it")
def a_loss_that_broadcasts(w: World) -> None:
    data = w.dataset(y=X[:, 0])
    w.refused(fit, data, net(1), loss=lambda output, target: nn.functional.mse_loss(output, target))
    fit(data, net(1), loss=lambda output, target: nn.functional.mse_loss(output[:, 0], target))


@world(
    f"{_PREFLIGHT}_input_fix: normalize='auto', or a model, or a transform of the loader, that takes {{}}",
    f"{_PREFLIGHT}_input_fix: a model that takes samples of shape {{}}",
)
def inputs_that_do_not_fit(w: World) -> None:
    data = w.dataset(x=X.astype("f8"))
    w.followed(fit, data)
    fit(data, transform=lambda batch: batch._replace(x=batch.x.float()))
    w.refused(fit, w.dataset("e.zarr"), nn.Linear(5, 3))
    fit(st.open("e.zarr"), nn.Linear(4, 3))


@world(
    f"{_ALIGNMENT}_align_classes: store class numbers: of one-hot labels y.argmax(axis=1)",
    f"{_ALIGNMENT}_align_classes: loss='mse' or loss='l1', or store the labels as int64",
    f"{_ALIGNMENT}_align_values: loss='cross_entropy' for class labels, or store the target as a float",
    f"{_ALIGNMENT}_wrong_shape: give the model {{}}",
    f"{_ALIGNMENT}_align_label_lists: store the lists as int64, each padded with -1",
    f"{_ALIGNMENT}_unfit: a function (output, target) -> each sample's loss, (B,), that calls it with all it takes",
    f"{_ALIGNMENT}check_element_weight: a weight for each element of a sample; weights of samples are a field: weight='w'",
)
def losses_and_their_targets(w: World) -> None:
    hot = np.eye(3, dtype="f4")[Y]
    one, many = w.dataset(), w.dataset("hot.zarr", y=hot)
    w.refused(fit, many)
    fit(w.dataset("argmax.zarr", y=hot.argmax(axis=1)))
    w.followed(fit, w.dataset("floats.zarr", y=Y * 1.5), net(1), loss="cross_entropy")
    w.followed(fit, one, loss="mse")
    fit(w.dataset("as_float.zarr", y=Y * 1.0), net(1), loss="mse")
    w.refused(fit, many, net(2), loss="mse")
    fit(many, net(3), loss="mse")
    w.refused(fit, many, loss=nn.MultiLabelMarginLoss())
    fit(w.dataset("lists.zarr", y=np.stack([Y, Y * 0 - 1, Y * 0 - 1], 1)), loss=nn.MultiLabelMarginLoss())
    w.refused(fit, many, loss=nn.TripletMarginLoss())
    fit(many, loss=lambda output, target: nn.functional.triplet_margin_loss(output, target, -target, reduction="none"))
    w.refused(fit, many, loss=nn.BCEWithLogitsLoss(weight=torch.ones(20, 1)))
    fit(many, loss=nn.BCEWithLogitsLoss(weight=torch.ones(3)))


@world(
    f"{_LOSSES}resolve_loss: one of {{}}, or a function (output, target) -> mean",
    f"{_LOSSES}resolve_loss: reduction='mean' or 'none'",
    f"{_LOSSES}Loss._own_total: return the loss of each sample, (B,)",
)
def losses(w: World) -> None:
    class Own(nn.Module):
        """A loss that only its writer knows."""

        def __init__(self, reduction: str) -> None:
            super().__init__()
            self.reduction = reduction

        def forward(self, output: Any, target: Any) -> Any:
            return nn.functional.cross_entropy(output, target, reduction=self.reduction)

    data = st.ingest({"x": X, "y": Y, "w": Y.astype("f4")}, w.folder / "d.zarr", progress=False)
    w.refused(fit, data, loss=5)
    w.refused(fit, data, loss=Own(reduction="sum"))
    w.refused(fit, data, loss=lambda output, target: (output**2).mean(0), weight="w")
    fit(data, loss="cross_entropy")
    fit(data, loss=Own(reduction="mean"))
    fit(data, loss=Own(reduction="none"))
    fit(data, loss=lambda output, target: (output**2).mean(1), weight="w")


@world(
    f"{_SAMPLE_PATH}loop_for: sample_path='auto', which takes the plain loop where it has to",
    f"{_SAMPLE_PATH}resume: sample_path={{}}, or leave it out",
)
def sample_paths(w: World) -> None:
    data, odd = w.dataset(), nn.Sequential(nn.Linear(4, 3), nn.Softplus())
    w.followed(fit, data, odd, update="sample", sample_path="fast", optimizer="sgd")
    run = w.folder / "run"
    fit(data, update="sample", optimizer="sgd", checkpoint=run, sample_path="plain")
    again = {"update": "sample", "optimizer": "sgd", "checkpoint": run, "resume": "auto"}
    w.followed(fit, data, **again, sample_path="fast", max_epochs=2)
    fit(data, **again, max_epochs=3)


@world("training/step_errors.py:name_rate: a lower learning rate, lr={}{}")
def training_that_diverges(w: World) -> None:
    data = w.dataset(x=X * 30, y=X[:, 0])
    how: dict[str, Any] = {"loss": "mse", "optimizer": "sgd", "lr": 1, "max_epochs": 60}
    # Weights that have diverged are none to begin with.
    w.followed(lambda **how: fit(data, net(1), **how), **how)


@world("optim/gradients.py:Clipping.clip: sparse=False where the model's layers are made")
def sparse_gradients_to_clip(w: World) -> None:
    data = w.dataset(x=Y)

    def model(sparse: bool) -> nn.Module:
        return nn.Sequential(nn.Embedding(3, 4, sparse=sparse), nn.Linear(4, 3))

    w.refused(fit, data, model(True), optimizer="sgd", clip_grad_norm=1.0)
    fit(data, model(False), optimizer="sgd", clip_grad_norm=1.0)


@world(
    "optim/determinism.py:_check_model: Dropout with p=0, LayerNorm or GroupNorm in place of BatchNorm, or another optimizer",
    "optim/full_batch.py:_check_one_iteration: max_iter=1, max_eval=26, line_search_fn='strong_wolfe', or optimizer='lbfgs'",
)
def line_searches(w: World) -> None:
    data, how = w.dataset(), {"update": "epoch", "optimizer": "lbfgs"}

    def dropping(p: float) -> nn.Module:
        return nn.Sequential(nn.Dropout(p), nn.Linear(4, 3))

    warnings.simplefilter("ignore")
    w.refused(fit, data, dropping(0.5), **how)
    fit(data, dropping(0.0), **how)
    fit(data, nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)), **how)
    fit(data, dropping(0.5))
    model = net()
    w.refused(fit, data, model, update="epoch", optimizer=torch.optim.LBFGS(model.parameters()))
    one = {"max_iter": 1, "max_eval": 26, "line_search_fn": "strong_wolfe"}
    fit(data, model, update="epoch", optimizer=torch.optim.LBFGS(model.parameters(), **one))
    fit(data, net(), **how)


@world("models/forward.py:check_autocast: autocast='bfloat16'")
def autocast(w: World) -> None:
    w.followed(fit, w.dataset(), autocast="float16")


@world("training/progress.py:Totals.__post_init__: max_epochs=5, say")
def a_run_without_an_end(w: World) -> None:
    w.followed(fit, w.dataset(), max_epochs=None)


@world(
    "models/forward.py:check_model: model='mlp' makes one by name",
    "models/forward.py:check_model: model={}(...), with its arguments",
    "models/losses.py:_refuse_class: loss={}{}()",
    "models/normalization.py:NormalizedModel.put: a torch.nn.Module",
    "models/normalization.py:awaits_statistics: None, 'auto', 'imagenet', or a mapping of input to module",
    "training/labels/learned.py:LearnedData.check_known: fit first, or give the modules themselves",
    "training/labels/from_data.py:BuiltLater._not_built: fit first",
    f"{_PREFLIGHT}check_fit: resume='auto', or leave it out",
)
def trainers(w: World) -> None:
    data = w.dataset()
    for later in (st.Trainer("mlp"), st.Trainer(net())):
        w.refused(later.predict, data)
        later.fit(data, max_epochs=1, memory="16MB", progress=False)
        later.predict(data)
    w.refused(fit, data, 5)  # type: ignore[arg-type]
    fit(data, "mlp")  # type: ignore[arg-type]
    w.refused(fit, data, nn.Linear)  # type: ignore[arg-type]
    fit(data, nn.Linear(4, 3))
    assert w.refused(fit, data, loss=nn.CrossEntropyLoss) == "loss=nn.CrossEntropyLoss()"
    fit(data, loss=nn.CrossEntropyLoss())
    w.followed(fit, data, resume=True, checkpoint="run")
    w.refused(fit, data, normalize=5)
    w.refused(fit, data, normalize={"x": 5})
    fit(data, normalize={"x": nn.Identity()})
    with st.StreamLoader(data, batch_size=20, memory="16MB") as loader:
        trainer = st.Trainer(net(), loss="cross_entropy", normalize="auto")
        w.refused(trainer.evaluate, loader)
        w.refused(trainer.predict, data)
        trainer.fit(loader, max_epochs=1, progress=False)
        trainer.evaluate(loader), trainer.predict(data)
        st.Trainer(net(), loss="cross_entropy", normalize={"x": nn.Identity()}).evaluate(loader)


@world(
    "training/sized_loaders.py:streams_of: two loaders, or two datasets",
    "training/sized_loaders.py:streams_of: leave them out, or give a dataset",
    "training/sized_loaders.py:_check_process: max_memory={} or more, or a smaller memory=",
)
def loaders_beside_datasets(w: World) -> None:
    data, trainer = w.dataset(), st.Trainer(net(), loss="cross_entropy")
    how = {"max_epochs": 1, "progress": False}
    with closing(st.StreamLoader(data, batch_size=20, memory="16MB")) as loader:
        w.refused(trainer.fit, loader, val=data, **how)
        trainer.fit(data, val=data, **how)
        w.refused(trainer.fit, loader, batch_size=10, **how)
        trainer.fit(loader, max_epochs=2, progress=False)
        held = sized_loaders.held_bytes()
        w.monkeypatch.setattr(sized_loaders, "held_bytes", lambda: held)
        w.followed(
            lambda max_memory: trainer.fit(loader, max_epochs=3, progress=False, max_memory=max_memory),
            max_memory="9MB",
        )


@world("training/run/run_state.py:open_run: checkpoint='runs/a', the folder of the run")
def resuming_without_a_folder(w: World) -> None:
    w.followed(fit, w.dataset(), resume="auto")


@world(
    "training/run/serialization.py:check_tensors: a buffer of it",
    "training/run/serialization.py:check_tensors: a dense tensor of floats, integers or booleans",
)
def states_that_no_checkpoint_holds(w: World) -> None:
    class Odd(nn.Linear):
        def __init__(self, extra: Any) -> None:
            super().__init__(4, 3)
            self.extra = extra

        def get_extra_state(self) -> Any:
            return self.extra

        def set_extra_state(self, state: Any) -> None:
            self.extra = state

    data = w.dataset()
    w.refused(fit, data, Odd(5), checkpoint=w.folder / "a")
    w.refused(fit, data, Odd(torch.eye(2).to_sparse()), checkpoint=w.folder / "b")
    fit(data, Odd(torch.eye(2)), checkpoint=w.folder / "c")


@world(
    "loader/augmentation.py:transformed: end it in: return batch",
    "loader/augmentation.py:transformed: lambda batch: ({}), say, for tuples",
    "loader/augmentation.py:transformed: batch._replace(...), or a tuple or dict of its tensors",
    "loader/augmentation.py:check_transform: transform(batch) or transform(batch, keys); functools.partial binds any other argument",
    "optim/determinism.py:check_deterministic: a transform that takes no keys and draws nothing, or another optimizer",
)
def transforms_under_a_line_search(w: World) -> None:
    data = w.dataset()
    w.refused(fit, data, transform=lambda batch: None)
    w.refused(fit, data, transform=lambda batch: (batch.x.numpy(), batch.y))
    w.refused(fit, data, transform=lambda batch, labels, weights: batch)
    assert "(batch.x, batch.y)" in w.refused(fit, data, transform=lambda x, y: (x, y))
    fit(data, transform=lambda batch: batch)
    draws = lambda batch: batch._replace(x=batch.x + torch.randn(batch.x.shape))  # noqa: E731
    w.refused(fit, data, transform=draws, update="epoch", optimizer="lbfgs", max_epochs=3)
    fit(data, transform=lambda batch: batch._replace(x=2 * batch.x), update="epoch", optimizer="lbfgs")
    fit(data, transform=draws)


@world(
    f"{_SCHEDULES}Schedule._refusals: see the factory",
    f"{_SCHEDULES}Schedule._check_factory: schedule={{}}",
    f"{_SCHEDULES}_schedule_with: {{}}, say",
)
def a_factory_that_fails(w: World) -> None:
    data = w.dataset()
    w.followed(fit, data, schedule=torch.optim.lr_scheduler.CosineAnnealingLR)
    for schedule in (torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.CyclicLR, "step", "multistep"):
        fix = w.refused(fit, data, schedule=schedule)
        fit(data, **eval(f"dict({fix.removesuffix(', say')})", {"st": st}), optimizer="sgd")
    w.refused(fit, data, schedule=lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.2, mode="no"))
    fit(data, schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1))


@world(
    "comparison/settings.py:ComparisonSettings.__post_init__: max_epochs=3, say",
    "comparison/compare.py:_check_resume: resume='auto', or leave it out",
    "comparison/compare.py:_check_resume: out='comparisons/1', say",
)
def a_comparison_without_an_end(w: World) -> None:
    how = {"rules": ("batch",), "optimizers": ("sgd",), "loss": "cross_entropy", "batch_size": 20, "memory": "16MB"}
    data = w.dataset()
    w.followed(st.compare, net(), data, **how, max_epochs=None)
    w.followed(st.compare, net(), data, **how, max_epochs=1, resume="auto")
    w.followed(st.compare, net(), data, **how, max_epochs=1, out="c", resume=True)
