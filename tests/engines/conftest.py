"""Data of the trainings by other people's trainers."""

import pytest
from engine_runs import make_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("engines") / "d.zarr"
    make_data(path)
    return str(path)
