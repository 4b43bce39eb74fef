"""The methods `predict` and `iter_predict`, of a loaded model and of a trainer alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy.typing as npt
import torch

from streamtrain.errors import UsageError
from streamtrain.loader.decode.delivery import Decode
from streamtrain.loader.decode.image_dataset import decode_to_measure
from streamtrain.loader.stream_loader import StreamLoader
from streamtrain.models.forward import check_autocast
from streamtrain.models.normalization import NormalizedModel
from streamtrain.models.target_normalization import in_units_of_data, takes_logarithms
from streamtrain.store.dataset import Dataset
from streamtrain.store.media.pillow import pillow_version
from streamtrain.system.arguments import check_flags
from streamtrain.system.calls.public import PublicIterator, public
from streamtrain.training.batch_stream import BatchStream
from streamtrain.training.best.watch import EpochWatch
from streamtrain.training.fitting import FitPlan
from streamtrain.training.inference.predicting import Doubts, PredictOptions, Predictor, hold, iterate, write
from streamtrain.training.inference.predictions import form_of_loss
from streamtrain.training.inference.summary import PredictionSummary
from streamtrain.training.labels.facts import label_config
from streamtrain.training.labels.from_data import BuiltLater
from streamtrain.training.loop import EpochLoop
from streamtrain.training.run.run_description import budget_config

Array = npt.NDArray[Any]


class Predicts:
    """What predicts, by a `Predictor` that a subclass makes."""

    @abstractmethod
    def predictor(self) -> Predictor:
        """Return the model with all that its predictions need."""

    @overload
    def predict(
        self,
        data: object,
        probabilities: bool = False,
        batch_size: int = 1024,
        memory: int | str = "512MB",
        out: None = None,
        rows: tuple[int, int | None] | str | None = None,
        overwrite: bool = False,
        autocast: str | torch.dtype | None = None,
    ) -> Array: ...

    @overload
    def predict(
        self,
        data: object,
        probabilities: bool = False,
        batch_size: int = 1024,
        memory: int | str = "512MB",
        *,
        out: str | Path,
        rows: tuple[int, int | None] | str | None = None,
        overwrite: bool = False,
        autocast: str | torch.dtype | None = None,
    ) -> PredictionSummary: ...

    @public
    def predict(
        self,
        data: object,
        probabilities: bool = False,
        batch_size: int = 1024,
        memory: int | str = "512MB",
        out: str | Path | None = None,
        rows: tuple[int, int | None] | str | None = None,
        overwrite: bool = False,
        autocast: str | torch.dtype | None = None,
    ) -> Array | PredictionSummary:
        """Predict every row, in order.

        Parameters
        ----------
        data : Dataset, path of one, array, dict of arrays, data frame, or batches
            Columns are matched by name. Images are read where they lie: a folder of them, a file, or a list of paths.
            Other raw files are read by `streamtrain.rows`.
        probabilities : bool
            Return those of all classes, not only the predicted label.
        batch_size : int
            Samples of a batch.
        memory : int or str
            Budget for reading, writing and the predictions held.
        out : path, optional
            A .csv, .tsv, .parquet, .npy or .zarr to write; it appears when it is complete.
        rows : (int, int) or str, optional
            The first row and the row after the last one; or both as ``"0:1000"``.
        overwrite : bool
            Replace what is at ``out`` when the new one is complete.
        autocast : str or torch.dtype, optional
            ``"bfloat16"`` for the operations for which `torch.autocast` finds it precise enough; float32 by default.

        Returns
        -------
        ndarray or PredictionSummary
            Labels as they are stored, class numbers or quantities, (N,) or (N, k); with ``probabilities`` those of each
            class, (N, K) float32. With ``out`` a summary of what was written.

        Raises
        ------
        UsageError
            The data lacks a column or field that the model takes, or one does not fit; or something is at ``out``.
        BudgetError
            ``memory`` is too small, or smaller than the result.
        """
        options = PredictOptions.of(probabilities=probabilities, batch_size=batch_size, memory=memory, rows=rows)
        predictor = replace(self.predictor(), autocast=check_autocast(autocast))
        if out is not None:
            written = write(predictor, data, options, out, overwrite=overwrite)
            written.doubts.warn(stacklevel=4)
            return written.summary
        check_flags(overwrite=overwrite)
        if overwrite:
            raise UsageError("overwrite without out", fix="leave it out")
        doubts = Doubts()
        found = hold(predictor, data, options, doubts)
        doubts.warn(stacklevel=4)
        return found

    @public
    def iter_predict(
        self,
        data: object,
        probabilities: bool = False,
        batch_size: int = 1024,
        memory: int | str = "512MB",
        rows: tuple[int, int | None] | str | None = None,
        autocast: str | torch.dtype | None = None,
    ) -> Iterator[dict[str, Array]]:
        """Yield predictions batch by batch: dicts of ``row``, ``prediction``, and ``probability`` for classes."""
        options = PredictOptions.of(probabilities=probabilities, batch_size=batch_size, memory=memory, rows=rows)
        predictor = replace(self.predictor(), autocast=check_autocast(autocast))
        return PublicIterator(iterate(predictor, data, options))


class PredictsInTraining(Predicts, BuiltLater):
    """The predictions of a trainer, on the weights in hand."""

    inputs: tuple[str, ...]
    device: Any
    decode: Decode | None = None  # of the data that it was trained on
    _normalized_model: NormalizedModel
    _epoch_loop: EpochLoop

    def predictor(self) -> Predictor:
        """Return the model as it is now; its mode, and that of its parts, stays as it was."""
        self.check_built()
        self.learned.check_known()
        schema, normalization = self.learned.schema.schema, self.learned.targets.normalization
        return Predictor(
            model=self._normalized_model,
            inputs=self.inputs,
            schema=schema,
            form=form_of_loss(self.loss, self._epoch_loop.reading, schema, self.target),
            device=self.device,
            decode=decode_to_measure(self.decode),
            in_units=partial(in_units_of_data, normalization=normalization, is_log=takes_logarithms(self.loss)),
        )

    def _config(
        self, described: dict[str, object], loader: BatchStream, watch: EpochWatch, plan: FitPlan
    ) -> dict[str, object]:
        """Add to a run's description its labels, where its data is, its budget, torch's threads, and when it ends."""
        labels = label_config(loader.dataset, self.target, self.loss, self._epoch_loop.reading)
        where = {"dataset": str(loader.dataset.path)} if isinstance(loader.dataset, Dataset) else {}
        budget = budget_config(loader, loader.memory_bytes) if isinstance(loader, StreamLoader) else {}
        ends = asdict(plan.totals) | watch.limits
        fit = {name: value for name, value in ends.items() if value is not None}
        images = {} if self.decode is None else {"pillow": pillow_version()}
        return described | labels | where | budget | images | {"threads": torch.get_num_threads(), "fit": fit}
