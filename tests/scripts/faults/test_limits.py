"""Limits and passing errors: every place once, with one of the errors, and one place with each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.faults.limits import ERRORS, Place, make_files, places, try_place

PLACES = list(places())
BLOCK = Place(command="verify {}/d.zarr --full", call="preadv", pattern=r"d\.zarr/x/c/1/", role="dataset")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("limits").resolve()
    make_files(made)
    return made


@pytest.mark.parametrize("number", range(len(PLACES)), ids=lambda number: str(PLACES[number]))
def test_every_place_says_what_failed_and_loses_nothing(folder: Path, number: int) -> None:
    assert try_place(PLACES[number], ERRORS[number % len(ERRORS)], folder) == ""


@pytest.mark.parametrize("error", ERRORS)
def test_no_error_of_the_system_is_damage(folder: Path, error: str) -> None:
    assert try_place(BLOCK, error, folder) == ""
