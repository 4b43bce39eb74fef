"""The mistakes of a first hour, row by row, each with the test that replays it on the command line and in Python.

A row that has no meaning on one of them says why in place of its test:

- the command line has no loader, trainer, batch or array in memory, so nothing of them can be given, indexed, pickled
  or wrapped there; it gets a dataset's folder or raw files, and mistakes with those have rows of their own;
- a masked array loses its mask in a file: NumPy saves the values alone;
- `no_grad` and type checkers are Python's.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

HERE: Final = Path(__file__).parent
M: Final = "test_messages.py::"
P: Final = "test_messages_in_python.py::"
T: Final = "test_python_traps.py::"
C: Final = "test_python_traps_typed.py::"


class Row(NamedTuple):
    """Where a row is replayed: a test, or, after a dash, why there is nothing to replay."""

    typed: str
    in_python: str


NO_LOADER: Final = "- the command line has no loader"
NO_ARRAYS: Final = "- the command line has nothing but files"
NOT_HELD: Final = T + "test_what_torch_reads_and_a_dataset_does_not_hold"
MISSPELT: Final = "cli/commands/test_nearest_names.py::test_a_misspelt_word_is_refused_with_the_right_one"

MESSAGES: Final = {
    "texts, NA labels, dates, several at once": Row(
        M + "test_all_columns_that_are_unfit_and_one_command", P + "test_all_columns_that_are_unfit_and_one_call"
    ),
    "a;b;c header": Row(M + "test_the_delimiter_is_found_and_told", P + "test_the_delimiter"),
    "UTF-16 mark": Row(M + "test_the_mark_of_utf_16", P + "test_the_mark_of_utf_16"),
    "label NA": Row(M + "test_labels_called_na", P + "test_labels_called_na"),
    "label ' dog'": Row(M + "test_labels_with_blanks_around_them", P + "test_labels_with_blanks_around_them"),
    "masked arrays": Row("- a file has no mask", P + "test_a_masked_array"),
    "empty labels in Parquet": Row(
        M + "test_what_is_missing_in_arrays_and_parquet", P + "test_empty_labels_in_parquet"
    ),
    "index in Parquet": Row(M + "test_what_is_missing_in_arrays_and_parquet", P + "test_an_index_in_parquet"),
    "zip, HDF5, JPEG and the like": Row(
        M + "test_a_file_without_a_reader_is_named_with_a_recipe", P + "test_a_file_without_a_reader"
    ),
    "folders of classes": Row(M + "test_a_folder_of_classes", P + "test_a_folder_of_classes"),
    "files of unlike fields": Row(M + "test_the_four_files_of_mnist", P + "test_the_four_files_of_mnist"),
    "fields not called x and y": Row(M + "test_fields_of_other_names_and_no_labels", P + "test_fields_of_other_names"),
    "x without labels": Row(M + "test_fields_of_other_names_and_no_labels", P + "test_no_labels"),
    "evaluate on data of another shape": Row(
        M + "test_evaluate_on_what_is_not_there_or_other_data", P + "test_data_of_another_shape"
    ),
    "evaluate on a folder that is not there": Row(
        M + "test_evaluate_on_what_is_not_there_or_other_data", P + "test_a_run_that_is_not_there"
    ),
    "evaluate beside a running train": Row(C + "test_a_run_beside_its_training", P + "test_a_run_beside_its_training"),
    "its newest checkpoint goes meanwhile": Row(
        "- both read a run by the function that this test calls",
        "training/run/test_checkpoint_meanwhile.py::test_it_is_the_newest_one",
    ),
    "compare diverges": Row(
        M + "test_a_comparison_that_diverges_names_the_step_and_a_lower_rate", P + "test_a_comparison_that_diverges"
    ),
    "train diverges": Row(
        M + "test_a_run_that_diverges_names_a_lower_rate",
        M + "test_a_comparison_that_diverges_names_the_step_and_a_lower_rate",
    ),
    "max_memory too small, memory with val": Row(M + "test_a_budget_too_small", P + "test_a_budget_too_small"),
    "plan with val": Row(
        "cli/test_plan.py::test_validation_data_takes_its_part",
        "- plan() is of one loader; fit shares the budget as the row above shows",
    ),
    "too many open files": Row(
        M + "test_fewer_open_files_than_shards_are_no_damage", M + "test_fewer_open_files_than_shards_are_no_damage"
    ),
    "BatchNorm with a last batch of one": Row(
        M + "test_a_last_batch_of_one_under_batch_norm", P + "test_a_last_batch_of_one_under_batch_norm"
    ),
    "max_steps in slices": Row(M + "test_slices_of_a_run_add_up", P + "test_slices_of_a_run_add_up"),
    "epochs raised under cosine, onecycle": Row(
        M + "test_a_run_under_a_schedule_that_has_an_end", P + "test_a_run_under_a_schedule_that_has_an_end"
    ),
    "float64, lazy and compiled models": Row(
        C + "test_models_of_float64_lazy_and_compiled_ones", P + "test_models_of_float64_lazy_and_compiled_ones"
    ),
    "evaluate inside no_grad": Row("- no_grad is Python's", P + "test_models_of_float64_lazy_and_compiled_ones"),
    "headspace without waiting": Row(
        P + "test_headspace_that_waiting_does_not_explain", P + "test_headspace_that_waiting_does_not_explain"
    ),
    "trials of L-BFGS and CG": Row(
        C + "test_the_figures_of_a_step_are_those_that_were_taken",
        P + "test_the_figures_of_a_step_are_those_that_were_taken",
    ),
    "terms of a plan": Row(
        M + "test_the_terms_of_a_plan_are_explained", P + "test_the_terms_of_a_plan_and_numbers_of_things"
    ),
    "1 blocks": Row(C + "test_numbers_of_things", P + "test_the_terms_of_a_plan_and_numbers_of_things"),
}

TRAPS: Final = {
    "StreamLoader of a path": Row(NO_LOADER, T + "test_a_path_or_a_dataset_is_enough"),
    "fit of a dataset or a path": Row(
        "- train takes nothing else; raw files have the next row", T + "test_a_path_or_a_dataset_is_enough"
    ),
    "fit of raw data": Row(
        C + "test_raw_files_where_a_dataset_is_expected", T + "test_fit_names_the_two_lines_that_work"
    ),
    "fit of images": Row(C + "test_a_folder_of_images_where_a_dataset_is_expected", NOT_HELD),
    "evaluate and predict of batches": Row(NO_ARRAYS, T + "test_evaluate_and_predict_take_any_iterable_of_batches"),
    "data frames": Row(C + "test_a_data_frame_saved_as_parquet", T + "test_data_frames"),
    "readers and an index": Row(C + "test_a_data_frame_saved_as_parquet", T + "test_a_reader_of_batches_and_an_index"),
    "labels of text": Row(C + "test_labels_of_text_in_an_array", T + "test_labels_of_text"),
    "tensors with gradients": Row(NO_ARRAYS, T + "test_tensors_with_gradients"),
    "sparse matrices": Row(C + "test_a_sparse_matrix_in_a_file", T + "test_sparse_matrices"),
    "torch's Dataset, DataLoader, iterators": Row(NO_ARRAYS, T + "test_what_torch_reads_is_a_source"),
    "shuffled DataLoader, images in a Dataset": Row(NO_ARRAYS, NOT_HELD),
    "a stored dataset as source": Row(C + "test_a_stored_dataset_is_a_source", T + "test_a_stored_dataset_is_a_source"),
    "its schema": Row(C + "test_a_stored_dataset_is_a_source", T + "test_a_stored_table_keeps_its_schema"),
    "URLs": Row(
        C + "test_urls_come_with_the_command_that_fetches_them",
        T + "test_urls_come_with_the_command_that_fetches_them",
    ),
    "fields named class, lambda, None": Row(
        C + "test_fields_named_by_words_of_python", T + "test_fields_named_by_words_of_python"
    ),
    "pickle of a Dataset": Row(NO_ARRAYS, T + "test_a_dataset_is_pickled_by_its_path_and_id"),
    "pickle of a loader or Trainer": Row(NO_LOADER, T + "test_loaders_and_trainers_are_not_pickled"),
    "Dataset in a shuffled DataLoader": Row(NO_LOADER, T + "test_a_dataset_in_a_shuffled_data_loader_warns_once"),
    "loader[0]": Row(NO_LOADER, T + "test_a_loader_is_a_stream"),
    "state of another seed": Row(
        C + "test_a_run_of_another_seed", T + "test_a_state_of_another_seed_is_refused_by_name"
    ),
    "parts in evaluation mode": Row(
        C + "test_parts_in_evaluation_mode_stay_so", T + "test_parts_in_evaluation_mode_stay_so"
    ),
    "a batch, to type checkers": Row(
        "- type checkers are Python's", "loader/test_batch.py::test_a_type_checker_sees_tensors"
    ),
    "names of other libraries": Row(MISSPELT, T + "test_names_of_other_libraries"),
    "tracebacks": Row("- a command shows none", T + "test_an_error_shows_the_users_line_and_one_of_ours"),
}

FACES: Final = {
    "typed": r"\b(typed|refused|accepted|main|headspace_line)\(",
    "in_python": r"\bst\.|\btrainer\(|\.fit\(|\bshown\(|Headspace\(|newest_checkpoint\(|sys\.executable",
}
"""What a test calls that replays a row there."""


@cache
def functions(file: str) -> dict[str, str]:
    """The source of a test file's functions, by name."""
    text = (HERE / file).read_text()
    found = [each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef)]
    return {each.name: ast.get_source_segment(text, each) or "" for each in found}


@pytest.mark.parametrize(("row", "at"), [(name, at) for name, at in (MESSAGES | TRAPS).items()])
def test_a_row_is_replayed_on_the_command_line_and_in_python(row: str, at: Row) -> None:
    assert not all(where.startswith("- ") for where in at)
    for face, where in zip(FACES, at, strict=True):
        if where.startswith("- "):
            continue
        file, _, name = where.partition("::")
        assert name in functions(file), f"{row}: no such test, {where}"
        assert re.search(FACES[face], functions(file)[name]), f"{row}: {where} does not replay it {face}"


@pytest.mark.parametrize("file", [M, P, C])
def test_every_test_of_messages_is_of_a_row(file: str) -> None:
    listed = {where for at in (MESSAGES | TRAPS).values() for where in at}
    tests = {name for name in functions(file.removesuffix("::")) if name.startswith("test_")}
    unlisted = {name for name in tests if file + name not in listed}
    assert unlisted <= BESIDES, unlisted


BESIDES: Final = {
    "test_a_zarr_of_somebody_else",
    "test_what_works_without_a_word",
    "test_fewer_blocks_are_not_what_one_batch_lacks",
}
"""Neighbors of rows."""
