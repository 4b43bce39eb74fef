"""`load`: the model of a run as a module of torch, with its normalization, its units and its classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from streamtrain.errors import StreamtrainWarning
from streamtrain.loader.device.resolve import resolve_device
from streamtrain.models.factory import n_parameters
from streamtrain.models.normalization import NormalizedModel
from streamtrain.store.schema.columns import INPUT, Schema
from streamtrain.system.calls.public import public
from streamtrain.system.display.notebook_html import clipped, clipped_left, html_facts, html_table, html_title
from streamtrain.system.units import counted
from streamtrain.training.best.chosen_checkpoint import BEST, Which
from streamtrain.training.inference.predicting import Predictor
from streamtrain.training.inference.predictions import form_of_run
from streamtrain.training.inference.predicts import Predicts
from streamtrain.training.inference.saved_run import (
    SavedRun,
    build_module,
    decode_of_run,
    normalize_modules,
    read_run,
)
from streamtrain.training.run.checkpoint import load_weights

_MOST_NAMES: Final = 20


class TrainedModel(Predicts, nn.Module):
    """The model of a run, in eval mode: stored inputs to outputs in the data's own units; made by `load`.

    Attributes
    ----------
    module : torch.nn.Module
        The model itself, without the normalization of its inputs.
    inputs : tuple of str
        The fields that it takes, in order.
    task : str or None
        "classification", "multilabel" or "regression".
    classes : tuple of str or None
        The names of classes 0, 1, ...
    columns, targets : tuple of str or None
        The names of the columns of field ``x``, and of ``y`` where there are several.
    schema : Schema
        What the numbers of its data mean; `streamtrain.rows` reads raw data by it.
    config : dict
        The run's configuration.
    best : dict
        The epoch of these weights, and the monitor that it is best by, if it is; ``weights`` is a sentence on it.
    """

    def __init__(self, run: SavedRun, module: nn.Module, device: torch.device) -> None:
        nn.Module.__init__(self)
        self._run = run.path
        self.inputs = run.inputs
        self.schema: Schema = run.schema
        self.config: dict[str, Any] = run.config
        self.weights = run.chosen.told()
        self.best: dict[str, Any] = run.chosen.named()
        self._in_units = run.in_units()
        self._form = form_of_run(run)
        self._device = device
        self._normalized = NormalizedModel(module, run.inputs)
        self._normalized.put(normalize_modules(run), device)

    def __repr__(self) -> str:
        n_classes = f" of {len(self.classes)} classes" if self.classes else ""
        kind = f"{clipped(str(self.config.get('model')), 20)}, {counted(n_parameters(self.module), 'weight')}"
        what = f", {kind}, {self.task or 'no task'}{n_classes}, epoch {self.best.get('epoch')})"
        return f"TrainedModel('{clipped_left(str(self._run), 84 - len(what))}'{what}"

    def _repr_html_(self) -> str:
        """Write it for a notebook: its weights, its inputs, its classes or targets, and its layers."""
        facts = [["weights", self.weights], ["inputs", ", ".join(self.inputs)]]
        for name, values in (("columns", self.columns), ("targets", self.targets), ("classes", self.classes)):
            facts += [[name, f"{len(values):,}: {', '.join(values[:_MOST_NAMES])}"]] if values else []
        layers = [[name, type(layer).__name__, f"{n_parameters(layer):,}"] for name, layer in self._layers()]
        table = html_table([["layer", "type", "weights"], *layers])
        return f"{html_title(repr(self))}{html_facts(facts)}{table}"

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that hold no others, by name."""
        for name, layer in self.module.named_modules():
            if next(layer.children(), None) is None:
                yield name or "module", layer

    @property
    def module(self) -> nn.Module:
        """The model itself, without the normalization of its inputs."""
        return self._normalized.model

    @property
    def task(self) -> str | None:
        """What it was trained for."""
        return self._form.task

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of classes 0, 1, ..."""
        return self._form.classes

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of the columns of field ``x``."""
        return self.schema.columns.get(INPUT)

    @property
    def targets(self) -> tuple[str, ...] | None:
        """The names of the columns of field ``y``, where there are several."""
        return self.schema.targets or None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return raw outputs (B, ...) for inputs in the dtype that they are stored in, (B, ...) each."""
        output: Tensor = self._normalized(*inputs)
        return output if self._in_units is None else self._in_units(output)

    def predictor(self) -> Predictor:
        """Return it with all that its predictions need."""
        return Predictor(
            model=self,
            inputs=self.inputs,
            schema=self.schema,
            form=self._form,
            device=next((each.device for each in self.parameters()), self._device),
            labels=self.config.get("labels", {}),
            is_weighted=bool(self.config.get("class_weight")),
            decode=decode_of_run(self.config),
        )


@public
def load(
    run: str | Path,
    which: Which = BEST,
    device: str | torch.device = "auto",
    model: str | nn.Module | None = None,
) -> TrainedModel:
    """Load the model of a run; nothing but its folder is needed.

    Parameters
    ----------
    run : path
        The folder that a training wrote.
    which : str or int
        ``"best"``, ``"last"``, or the number of batches that a checkpoint is named by.
    device : str or torch.device
        ``"auto"`` is CUDA where there is any, else the CPU.
    model : str or torch.nn.Module, optional
        Code of your own that the run was trained with: ``"FILE.py:NAME"``, or the module. Code runs only if you name it
        here.

    Returns
    -------
    TrainedModel
        A `torch.nn.Module` in eval mode: ``model(x)`` takes inputs as they are stored, and gives raw outputs.

    Raises
    ------
    CheckpointError
        The folder is not a run, is damaged, or its model is code that ``model`` has to name.

    Examples
    --------
    >>> import numpy as np, tempfile, streamtrain as st
    >>> folder = tempfile.mkdtemp()
    >>> x = np.arange(40, dtype=np.float32).reshape(20, 2)
    >>> dataset = st.ingest({"x": x, "y": (x[:, 0] > 19).astype(int)}, folder + "/d.zarr")
    >>> net = torch.nn.Linear(2, 2)
    >>> _ = st.Trainer(net, loss="cross_entropy", device="cpu").fit(dataset, max_epochs=1, checkpoint=folder + "/run")
    >>> model = load(folder + "/run", device="cpu", model=torch.nn.Linear(2, 2))
    >>> model(torch.from_numpy(x)).shape, model.predict(dataset).shape, model.task
    (torch.Size([20, 2]), (20,), 'classification')
    """
    found = read_run(run, which)
    if found.chosen.doubt:
        warnings.warn(StreamtrainWarning(found.chosen.doubt), stacklevel=3)
    place = resolve_device(device)
    module = build_module(found, model).to(place)
    load_weights(module, found.chosen.checkpoint)
    return TrainedModel(found, module, place).eval()
