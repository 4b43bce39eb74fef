"""The options and the help of ``streamtrain evaluate``, ``predict`` and ``export``, without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from streamtrain.cli.commands import values
from streamtrain.cli.commands.sections import command, option
from streamtrain.cli.commands.values import FILE, RUN, SIZE, Code, Split, Suggestion
from streamtrain.cli.options import DEVICE_HELP, which_option
from streamtrain.cli.output import json_option

_SOURCES: Final = click.argument("sources", nargs=-1, required=True, metavar="SRC...", type=FILE)
_MODEL: Final = option(
    "--model", type=Code(), help="Your own code, FILE.py:NAME or PACKAGE.MODULE:NAME, if the run needs it."
)
_DEVICE: Final = option("--device", default="auto", type=Suggestion(values.DEVICES), metavar="DEVICE", help=DEVICE_HELP)
_IMAGES: Final = option(
    "--images",
    metavar="[CROP:]SIZE",
    help="Decode images in another way; by default the center, at the size used in training.",
)
_OVERWRITE: Final = option("--overwrite", is_flag=True, help="Replace what is at --out when the new file is complete.")
_TEXT: Final = "Raw files"
_TEXT_OPTIONS: Final = (
    option("--delimiter", metavar="CHAR", section=_TEXT, help="Text: by default found among , ; | and tab."),
    option("--encoding", metavar="NAME", section=_TEXT, help="Text: its encoding; utf-8 by default."),
    option(
        "--header",
        type=Suggestion(("first", "none")),
        section=_TEXT,
        help="Text: first: the first line holds the names; none: give --names.",
    ),
    option("--names", metavar="A,B", section=_TEXT, help="Text without a header: the names of its columns."),
    option("--na-values", metavar="A,B", section=_TEXT, help="Text: words that mean missing."),
    option(
        "--fields",
        metavar="x=A,y=B",
        section=_TEXT,
        help=".npz, HDF5, Zarr: the arrays that become fields; for the last two by default as in training.",
    ),
)
"""The form of raw text, and the names of raw arrays, where they are not the default."""


def _with_text_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for add in reversed(_TEXT_OPTIONS):
        function = add(function)
    return function


@command(
    "predict",
    context_settings={"show_default": True},
    examples=(
        "streamtrain predict runs/1 new.csv",
        "streamtrain predict runs/1 new.csv --out predictions.csv",
        "streamtrain predict runs/1 flights --split test --out test.npy",
    ),
    page="predict",
)
@click.argument("run", type=RUN)
@_SOURCES
@option("--out", metavar="FILE", type=FILE, help="A .csv, .tsv, .parquet, .npy or .zarr; - is CSV on stdout.")
@option("--probabilities", is_flag=True, help="Write the probability of every class, not only of the predicted one.")
@option("--split", type=Split(), metavar="NAME", help="The split of SRC to predict, where it has splits.")
@option("--rows", metavar="A:B", help="Rows A to B-1, counted from 0.")
@which_option
@_MODEL
@option("--batch-size", type=int, default=1024, help="Samples per batch.")
@option("--memory", type=SIZE, default="512MB", help="Memory budget of reading and writing.")
@_IMAGES
@_DEVICE
@option("--autocast", metavar="bf16", help="Compute in bfloat16 where that is good enough; else in float32.")
@_OVERWRITE
@_with_text_options
@json_option
def predict_command(as_json: bool, **given: Any) -> None:
    """Predict every row of SRC, in order, with the model of the folder RUN.

    SRC is a dataset, or raw files of any format that `streamtrain ingest` reads; columns are matched by name with the
    training data's. Without --out, the first ten rows are shown.
    """
    from streamtrain.cli.inference.predict import run_predict

    run_predict(as_json=as_json, **given)


@command(
    "evaluate",
    context_settings={"show_default": True},
    examples=("streamtrain evaluate runs/1 flights", "streamtrain evaluate runs/1 flights.csv --checkpoint last"),
    page="predict",
)
@click.argument("run", type=RUN)
@_SOURCES
@which_option
@_MODEL
@option("--weight", metavar="FIELD", help="The field of the samples' weights, or none; by default as in training.")
@option("--batch-size", type=int, default=256, help="Samples per batch; the result does not depend on it.")
@option("--labels", multiple=True, metavar="FILE", type=FILE, help="Raw arrays: a file of their labels; repeatable.")
@option("--split", type=Split(), metavar="NAME", help="The split of SRC to measure on; by default test, else val.")
@option("--memory", type=SIZE, default="512MB", help="Memory budget of the loader.")
@_IMAGES
@_DEVICE
@option(
    "--positive",
    metavar="CLASS",
    help="With two classes, the one that precision and recall measure; by default class 1.",
)
@option("--per-class", is_flag=True, help="Show every class, label or target, not only the worst of many.")
@_with_text_options
@json_option
def evaluate_command(as_json: bool, **given: Any) -> None:
    """Measure the model of the folder RUN on SRC: loss, the scores of the task, and a table of classes.

    SRC is a dataset, or raw files with labels. It uses the weights of the best epoch if the run has a
    monitor, otherwise the last. Inputs are rescaled with the statistics saved with the run. Columns are matched by name
    with the training data's, and classes keep their numbers from training.
    """
    from streamtrain.cli.inference.evaluate import run_evaluate
    from streamtrain.cli.ranks import device_of_rank, process_group

    given["device"] = device_of_rank(given["device"])
    with process_group(given["device"]):
        run_evaluate(as_json=as_json, **given)


@command(
    "export",
    context_settings={"show_default": True},
    examples=("streamtrain export runs/1 --out model.safetensors",),
    page="predict",
)
@click.argument("run", type=RUN)
@option("--out", metavar="FILE", type=FILE, required=True, help="A .safetensors file.")
@which_option
@_OVERWRITE
@json_option
def export_command(as_json: bool, **given: Any) -> None:
    """Write the weights of the folder RUN, and the normalization of its inputs, to one file that needs no streamtrain.

    Its tensors are model.* and normalize.*; its header holds the schema and the task as JSON.
    """
    from streamtrain.cli.inference.predict import run_export

    run_export(as_json=as_json, **given)
