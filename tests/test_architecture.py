"""What is nowhere in the package: circles, code run from data, random states of the process, nameless threads.

Who may import whom is held again when the modules have moved into their packages.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamtrain"

# Everything here draws from a seed it is given; what draws from a state of the process is left out.
SEEDED = {"SeedSequence", "Generator", "BitGenerator", "PCG64", "PCG64DXSM", "Philox", "SFC64", "default_rng"}
RUNS_CODE_FROM_DATA = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """Every dotted name a module imports, in functions too; ``from a import b`` gives ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def distributions(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def own_imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, without the package's name."""
    for name in imports(module):
        inside = name.removeprefix("streamtrain.")
        if inside != name and inside != "__version__":
            yield inside if inside in MODULES else inside.rpartition(".")[0] or inside


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def attributes(module: str) -> Iterator[str]:
    return (dotted(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute))


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(own_imports(module)) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_what_is_imported_is_declared_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {line.split(">=")[0] for line in project["dependencies"]}
    extra = {"pyarrow", "matplotlib"}
    type_checkers = {"_typeshed"}
    used = {name for module in MODULES for name in distributions(module)} - sys.stdlib_module_names - {"streamtrain"}
    assert used - extra - type_checkers == core


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_code_from_data_or_starts_a_process(module: str) -> None:
    assert not distributions(module) & RUNS_CODE_FROM_DATA
    assert "multiprocessing" not in distributions(module)
    names = {*attributes(module), *imports(module)}
    assert not names & {"os.fork", "torch.load", "torch.save", "concurrent.futures.ProcessPoolExecutor"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_draws_from_a_random_state_of_the_process(module: str) -> None:
    if module.endswith("seeding"):
        return  # which borrows torch's states, and gives them back
    assert "random" not in distributions(module)
    for name in {*attributes(module), *imports(module)}:
        for prefix in ("np.random.", "numpy.random."):
            assert not name.startswith(prefix) or name.removeprefix(prefix).split(".")[0] in SEEDED, name
        assert not (name.startswith("torch.") and name.endswith(("manual_seed", "manual_seed_all", ".seed"))), name


@pytest.mark.parametrize("module", MODULES)
def test_every_thread_has_a_name_to_be_found_by(module: str) -> None:
    named = {"Thread": "name", "ThreadPoolExecutor": "thread_name_prefix"}
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call) and (kind := dotted(node.func).rpartition(".")[2]) in named:
            assert named[kind] in {word.arg for word in node.keywords}, (
                f"{module} line {node.lineno}: {kind} has no name"
            )


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running some code."""
    report = "import sys; print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_import_streamtrain_is_light() -> None:
    assert not loaded_after("import streamtrain") & {"torch", "zarr", "dask", "numpy", "click"}


def test_help_is_light() -> None:
    assert not loaded_after("from streamtrain.cli.main import main; main(['--help'])") & {
        "torch",
        "zarr",
        "dask",
        "numpy",
    }
