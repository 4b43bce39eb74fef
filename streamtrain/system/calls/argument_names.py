"""Unknown arguments: the nearest name, and the names that other libraries have for ours."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from streamtrain.errors import Argument, Fix, MissingArgument, UnknownArgument

_ELSEWHERE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "max_epochs": ("epochs", "n_epochs", "num_epochs", "nb_epoch", "num_train_epochs", "max_iter"),
        "max_steps": ("steps", "n_steps", "num_steps", "steps_per_epoch"),
        "lr": ("learning_rate", "learning_rate_init", "eta", "eta0"),
        "loss": ("criterion", "loss_fn", "loss_function", "loss_func", "objective"),
        "optimizer": ("optim", "opt", "solver"),
        "val": (
            *("validation_data", "val_dataloaders", "val_dataloader", "val_loader", "valid_loader", "val_data"),
            *("eval_dataset", "eval_set", "validation", "val_dataset", "valid", "datamodule"),
        ),
        "loader": ("train_dataloaders", "train_dataloader", "train_loader", "dataloader", "train_dataset", "data"),
        "dataset": ("data", "path"),
        "on_epoch": ("callbacks", "callback", "on_epoch_end"),
        "on_step": ("on_step_end", "on_batch_end"),
        "transform": ("collate_fn", "transforms", "augment", "preprocess", "map_fn"),
        "batch_size": ("bs", "batch", "per_device_train_batch_size"),
        "seed": ("random_state", "random_seed", "generator", "rng"),
        "device": ("accelerator", "devices", "gpus", "gpu"),
        "autocast": ("precision", "amp", "fp16", "bf16", "mixed_precision"),
        "clip_grad_norm": ("gradient_clip_val", "max_grad_norm", "clipnorm", "clip_norm"),
        "clip_grad_value": ("clipvalue", "clip_value"),
        "accumulate_grad_batches": ("gradient_accumulation_steps", "accumulation_steps"),
        "schedule": ("scheduler", "lr_scheduler", "lr_schedule"),
        "class_weight": ("class_weights",),
        "weight": ("sample_weight", "sample_weights"),
        "patience": ("early_stopping", "n_iter_no_change", "early_stopping_rounds"),
        "checkpoint": ("default_root_dir", "output_dir", "checkpoint_dir", "save_dir", "log_dir"),
        "checkpoint_every": ("save_steps", "every_n_train_steps", "save_every"),
        "resume": ("ckpt_path", "resume_from_checkpoint"),
        "log_every": ("log_every_n_steps", "logging_steps", "log_interval"),
        "progress": ("verbose", "enable_progress_bar", "progress_bar"),
        "label_column": ("target", "target_column", "label", "y_col", "target_col"),
        "labels": ("y", "targets"),
        "columns": ("usecols", "features", "feature_columns", "x_col"),
        "delimiter": ("sep",),
        "id_column": ("index_col",),
        "dates": ("parse_dates",),
        "codec": ("compression", "compressor", "compress"),
        "block": ("chunks", "chunk_size", "chunksize", "chunk"),
        "split": ("val_split", "validation_split", "test_size", "valid_size"),
        "n_workers": ("n_jobs", "workers", "num_proc", "num_workers"),
        "path": ("out", "filename", "fname"),
        "overwrite": ("force", "exist_ok"),
    }
)
_OURS: Final = {
    word: tuple(name for name, words in _ELSEWHERE.items() if word in words)
    for word in itertools.chain(*_ELSEWHERE.values())
}

_THREADS: Final = "A loader reads with threads of its own"
_NEEDLESS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("num_workers", "persistent_workers", "prefetch_factor", "worker_init_fn"), _THREADS),
        **dict.fromkeys(("pin_memory", "pin_memory_device"), "Batches for a GPU are page-locked already"),
        **dict.fromkeys(("sampler", "batch_sampler"), "The order follows from the seed and shuffle"),
        "multiprocessing_context": _THREADS,
    }
)
"""Arguments of other libraries that nothing here stands for."""

_PLACES: Final = (
    (
        "Trainer",
        "loss optimizer lr update task class_weight metrics normalize normalize_target schedule autocast compile "
        "weight clip_grad_norm clip_grad_value accumulate_grad_batches on_step l2 momentum weight_decay inputs target",
    ),
    (
        "Trainer.fit",
        "max_epochs max_steps val patience monitor min_delta restore_best checkpoint checkpoint_every resume log_every "
        "on_epoch progress until_loss",
    ),
    ("StreamLoader", "transform shuffle drop_last batch_size memory lanes on_bad_block"),
    ("ingest", "label_column labels columns delimiter categorical dates codec block shard split overwrite append"),
)


def unknown_argument(name: str, known: Collection[str], function: str, value: object = None) -> UnknownArgument:
    """Build the error for an argument that a function does not have.

    Examples
    --------
    >>> str(unknown_argument("epochs", ["max_epochs", "val"], "Trainer.fit", 5))
    "unknown argument 'epochs' of Trainer.fit. Fix: max_epochs=5."
    >>> str(unknown_argument("lr", ["max_epochs", "val"], "Trainer.fit", 0.1))
    "unknown argument 'lr' of Trainer.fit. It is one of Trainer. Fix: give lr=0.1 to Trainer."
    """
    what = f"unknown argument {name!r:.80} of {function}"
    if ours := next((each for each in _OURS.get(name, ()) if each in known), None):
        return UnknownArgument(what, fix=_renamed(ours, value))
    if name in _NEEDLESS:
        return UnknownArgument(what, why=_NEEDLESS[name], fix="leave it out")
    near = difflib.get_close_matches(name.lower(), sorted(known), n=1)
    place = None if near and _is_near(name, near[0]) else _place(name, function)
    if place is not None:
        ours, of = place
        fix = Fix("give ", _with_value(ours, value), f" to {of}")
        return UnknownArgument(what, why=f"It is one of {of}" if ours == name else None, fix=fix)
    if near:
        return UnknownArgument(what, fix=f"did you mean {near[0]!r}?")
    return UnknownArgument(what, why=f"Known: {', '.join(sorted(known))}", fix="use one of the known argument names")


def names_here(name: str) -> tuple[str, ...]:
    """Return the names of ours for an argument of another library."""
    return _OURS.get(name, ())


def is_misspelt(name: str, known: Collection[str]) -> bool:
    """Say whether a name is nearly one of the known ones, or another library's name for one of them."""
    return name in _OURS or name in _NEEDLESS or any(_is_near(name, each) for each in known)


def _is_near(name: str, known: str) -> bool:
    return bool(difflib.get_close_matches(name, [known], n=1, cutoff=0.8))


def _place(name: str, function: str) -> tuple[str, str] | None:
    """Find another function that has the argument, by our name or another library's."""
    for ours in (name, *_OURS.get(name, ())):
        for of, names in _PLACES:
            if of != function and ours in names.split():
                return ours, of
    return None


def _with_value(name: str, value: object) -> Argument:
    return Argument(name, _AS_OURS.get(name, _as_it_is)(value))


def _as_it_is(value: object) -> object:
    return value if isinstance(value, int | float | str) else None


def _share(value: object) -> object:
    return {"val": value} if isinstance(value, float) and 0 < value < 1 else None


def _flag(value: object) -> object:
    return bool(value) if isinstance(value, int) else None


def _number(value: object) -> object:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _auto(value: object) -> object:
    return "auto" if value else None


_AS_OURS: Final[Mapping[str, Callable[[object], object]]] = {
    "split": _share,
    "progress": _flag,
    "patience": _number,
    "resume": _auto,
}
"""Names of ours whose values are of another kind than elsewhere."""


def _renamed(ours: str, value: object) -> Fix:
    argument = _with_value(ours, value)
    return Fix(argument) if argument.value is not None else Fix(f"it is {ours!r} here")


_WANTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "history": "what fit returned, or trainer.history",
        "source": "files, arrays, a data frame or a dataset",
        "dest": "the folder to write",
        "path": "the folder of a dataset",
        "dataset": "a dataset, or its folder",
        "loader": "a dataset, its folder, or a StreamLoader",
        "data": "a dataset, files, arrays or a data frame",
        "model": "a module of torch, or a name such as 'mlp:128'",
        "run": "the folder of a run",
    }
)
"""Examples of values for arguments that a function needs."""


def missing_argument(missing: Sequence[str], function: str) -> MissingArgument:
    """Build the error for a call without arguments that a function needs.

    Examples
    --------
    >>> str(missing_argument(["history"], "plot"))
    'plot is called without history. Fix: plot(history): what fit returned, or trainer.history.'
    """
    said = "; ".join(
        f"{name} is {what}" if len(missing) > 1 else what for name in missing if (what := _WANTED.get(name))
    )
    call = f"{function}({', '.join(missing)})"
    return MissingArgument(
        f"{function} is called without {' and '.join(missing)}", fix=f"{call}: {said}" if said else call
    )


def surplus_argument(
    arguments: Mapping[str, inspect.Parameter], given: Sequence[object], by_place: int, function: str
) -> UnknownArgument:
    """Build the error for more arguments by position than a function takes so."""
    own = len(given) - ("self" in arguments)
    most = by_place - ("self" in arguments)
    named = next((name for name, each in arguments.items() if each.kind is each.KEYWORD_ONLY), None)
    what = f"{function} takes {most} argument{'s' * (most != 1)} by position, and is given {own}"
    argument = None if named is None else _with_value(named, given[by_place])
    fix = "leave the others out" if argument is None else Fix("name the others: ", argument, ", say")
    return UnknownArgument(what, fix=fix)
