"""The scores that a run keeps in ``scores.json``: those of its last epoch, and under ``best`` those of its best.

The file is written before the checkpoint that it belongs to, so a kill between the two leaves it one checkpoint ahead.
Under ``before`` it therefore has what the checkpoint before names and the new one does not: a run that resumes there
finds its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamtrain.system.arguments import is_int
from streamtrain.system.json_values import to_json_value

BEST: Final = "best"
BEFORE: Final = "before"


@dataclass(frozen=True, slots=True, kw_only=True)
class _EpochScores:
    """The scores of an epoch as JSON text, which takes less memory than a large confusion matrix as numbers."""

    n_batches: int
    epoch: int
    is_partial: bool
    text: str


class KeptScores:
    """The scores of a run that is being written."""

    def __init__(self) -> None:
        self._baseline: str | None = None
        # Of the newest checkpoint's best and last epoch, and of all epochs since.
        self._of_checkpoint: tuple[_EpochScores, ...] = ()
        self._epochs: tuple[_EpochScores, ...] = ()
        self._written: str | None = None

    def keep_baseline(self, baseline: Mapping[str, object]) -> None:
        """Keep the baseline, of a run that has no epoch yet."""
        self._baseline = _text({"baseline": baseline})

    def keep(self, scores: Mapping[str, object]) -> None:
        """Keep the scores of an epoch, as `EpochSummary.scores` gives them."""
        self._epochs = (*self._epochs, *_parsed(scores))

    def changed(self, best_epoch: int | None) -> str | None:
        """Return the file's text, given the best epoch; None where it is that already."""
        named = self._named(best_epoch)
        if not named:
            text = self._baseline
        else:
            before = ", ".join(each.text for each in self._of_checkpoint if each not in named)
            best = named[0].text if len(named) > 1 or named[0].epoch == best_epoch else "null"
            text = f'{named[-1].text[:-1]}, "{BEST}": {best}, "{BEFORE}": [{before}]}}'
        return None if text == self._written else text

    def written(self, text: str) -> None:
        """Note that the file holds a text."""
        self._written = text

    def saved(self, best_epoch: int | None) -> None:
        """Note that a checkpoint names this best epoch: what it and the one before do not name is not needed."""
        self._epochs = self._of_checkpoint = self._named(best_epoch)

    def _named(self, best_epoch: int | None) -> tuple[_EpochScores, ...]:
        """Return the best, where it is another, and the last."""
        *_, last = self._epochs or (None,)
        best = next((each for each in self._epochs if each.epoch == best_epoch and not each.is_partial), None)
        return tuple(each for each in dict.fromkeys((best, last)) if each is not None)

    def resume(self, file: object, n_batches: int) -> None:
        """Go on from a file's content at a checkpoint after so many batches; what is later is forgotten."""
        found = sorted(set(_of_file(file)), key=lambda each: (each.n_batches, each.epoch))
        self._epochs = self._of_checkpoint = tuple(each for each in found if each.n_batches <= n_batches)


def _of_file(file: object) -> Iterator[_EpochScores]:
    """Yield the epochs in a file; what no run has written, or an earlier version, is left out."""
    if not isinstance(file, dict):
        return
    before = file.get(BEFORE)
    last = {name: value for name, value in file.items() if name not in (BEST, BEFORE)}
    for each in (*(before if isinstance(before, list) else []), file.get(BEST), last):
        yield from _parsed(each)


def _parsed(scores: object) -> Iterator[_EpochScores]:
    match scores:
        case {"epoch": epoch, "batches": n_batches, **rest} if is_int(epoch, 0) and is_int(n_batches, 0):
            is_partial = rest.get("partial") is True
            yield _EpochScores(n_batches=n_batches, epoch=epoch, is_partial=is_partial, text=_text(scores))


def _text(value: Any) -> str:
    return json.dumps(to_json_value(value), allow_nan=False)
