"""The state of a loader in the checkpoints of the Trainer of transformers."""

from __future__ import annotations

from typing import Any, Self

from streamtrain.errors import UsageError
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.system.arguments import a_kind


class HFLoaderState:
    """A callback that keeps a loader's place in the checkpoints of ``transformers.Trainer``, and takes it up again.

    The trainer's ``get_train_dataloader`` returns the loader, made with ``as_dict=True``. With
    ``TrainingArguments(ignore_data_skip=True)``, ``train(resume_from_checkpoint=...)`` then goes on with the next batch
    after the checkpoint, and reads none of those before it.

    Parameters
    ----------
    loader : StreamLoader
        The loader that the trainer trains on.

    Raises
    ------
    UsageError
        It is no loader.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> dataset = st.ingest({"x": np.ones((6, 3)), "y": np.arange(6)}, tempfile.mkdtemp() + "/d.zarr")
    >>> with st.StreamLoader(dataset, batch_size=4, as_dict=True) as loader:
    ...     callback = st.HFLoaderState(loader)          # Trainer(..., callbacks=[callback])
    ...     _ = next(iter(loader))
    ...     callback.state()["attributes"]["place"]["batch"]
    1
    """

    _loader: StreamLoader
    place: dict[str, Any] | None = None

    def __new__(cls, loader: StreamLoader | None = None) -> Self:
        if loader is not None:
            # A class for each loader: the Trainer can make its callbacks anew, by their class and what JSON holds.
            cls = type("HFLoaderState", (cls, *_callback_bases()), {"_loader": loader})
        if not isinstance(getattr(cls, "_loader", None), StreamLoader):
            raise UsageError(f"HFLoaderState is given {a_kind(loader)}", fix="the StreamLoader of the training")
        return super().__new__(cls)

    def __init__(self, loader: StreamLoader | None = None) -> None:
        """Take the loader; `__new__` has it already."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, which the Trainer asks for when it saves one."""
        return {"args": {}, "attributes": {"place": self._loader.state_dict()}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Find the place in the checkpoint that the run goes on from."""
        kept = state.stateful_callbacks.get("HFLoaderState") if state.global_step else None
        self.place = kept and (kept[0] if isinstance(kept, list) else kept)["attributes"]["place"]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Put the loader where the checkpoint was taken."""
        if self.place is None:
            return
        loader, place = self._loader, self.place
        self.place = None
        loader.load_state_dict(place)
        if 0 < place["batch"] < len(loader):
            _keep_place(loader, place)


def _keep_place(loader: StreamLoader, place: dict[str, Any]) -> None:
    """Have the loader stay where it is for one call of ``set_epoch``."""
    # The Trainer calls it after all its callbacks and before it iterates, which would begin the epoch anew.

    def set_epoch(epoch: int) -> None:
        del vars(loader)["set_epoch"]
        if epoch != place["epoch"]:
            loader.set_epoch(epoch)

    vars(loader)["set_epoch"] = set_epoch


def _callback_bases() -> tuple[type, ...]:
    """The classes of transformers that its Trainer knows a callback with a state by; none where it is not there."""
    try:
        from transformers import TrainerCallback
        from transformers.trainer_callback import ExportableState
    except ModuleNotFoundError:
        return ()  # and so is no Trainer
    return TrainerCallback, ExportableState
