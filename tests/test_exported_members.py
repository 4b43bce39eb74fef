"""The names that ``import streamtrain`` offers: every one, lazily, and none of them a module."""

from __future__ import annotations

import ast
import doctest
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamtrain
from streamtrain import errors


def names_for_type_checkers() -> set[str]:
    """What the package imports under ``if TYPE_CHECKING``, where a type checker looks."""
    body = ast.parse(Path(streamtrain.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_all_is_what_is_exported() -> None:
    assert streamtrain.__all__ == sorted(streamtrain.__all__)
    assert set(streamtrain.__all__) == names_for_type_checkers() | {"__version__"}
    assert dir(streamtrain) == streamtrain.__all__


@pytest.mark.parametrize("name", streamtrain.__all__)
def test_every_name_leads_to_its_value(name: str) -> None:
    value = getattr(streamtrain, name)
    assert not inspect.ismodule(value)
    assert name in {"open", "__version__"} or value.__name__ == name


def test_every_error_is_exported() -> None:
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert classes <= set(streamtrain.__all__)


def test_every_error_is_ours_and_has_its_exit_code() -> None:
    codes = {name: getattr(streamtrain, name).exit_code for name in streamtrain.__all__ if name.endswith("Error")}
    assert codes == {
        "BudgetError": 5,
        "CheckpointError": 6,
        "DatasetError": 4,
        "DeviceError": 5,
        "DivergedError": 8,
        "InputError": 3,
        "LockedError": 9,
        "ResourceError": 5,
        "StallError": 7,
        "StreamtrainError": 1,
        "UsageError": 2,
    }


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'StreamLoadr'"):
        streamtrain.StreamLoadr  # noqa: B018


SHADOWING = {
    "the function first": "import streamtrain as st; st.ingest; import streamtrain.ingestion.ingest",
    "the module first": "import streamtrain.ingestion.ingest; import streamtrain as st",
    "a name of the module": "from streamtrain.ingestion.ingest import ingest; import streamtrain as st",
    "by another module": "import streamtrain as st, importlib; importlib.import_module('streamtrain.ingestion.ingest')",
}


@pytest.mark.parametrize("code", SHADOWING.values(), ids=SHADOWING)
def test_ingest_is_the_function_whoever_imports_the_module(code: str) -> None:
    check = "import inspect; assert inspect.isfunction(st.ingest), st.ingest"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True)


def test_no_module_has_the_name_of_an_exported_one() -> None:
    modules = {module.name for module in pkgutil.iter_modules(streamtrain.__path__)}
    assert not modules & set(streamtrain.__all__)


def test_a_value_can_be_set_in_place_of_an_exported_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamtrain, "ingest", len)
    assert streamtrain.ingest([]) == 0


PUBLIC = [name for name in streamtrain.__all__ if name != "__version__" and name not in vars(errors)]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_with_a_number(name: str) -> None:
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(streamtrain, name)) or "")
    assert any(re.search(r"\d", example.want) for example in examples)


def test_the_face_is_what_the_page_says() -> None:
    assert set(PUBLIC) == {
        *("ingest", "open", "rows", "verify", "repair", "Dataset", "Field", "Layout"),
        *("StreamLoader", "Batch", "Images", "plan", "uniform", "normal"),
        *("Trainer", "Schedule", "History", "plot", "compare", "load", "HFLoaderState"),
    }
