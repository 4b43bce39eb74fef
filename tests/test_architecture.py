"""The package as its page, ``streamtrain/README.md``, has it: who may import whom, where libraries stay, sizes."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import streamtrain
import streamtrain.errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "streamtrain"
PAGE = PACKAGE / "README.md"

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
BY_PACKAGE = {
    name: tuple(module for module in MODULES if module.split(".")[0] == name)
    for name in dict.fromkeys(module.split(".")[0] for module in MODULES)
}
"""A test for each module would take longer than what it looks at."""
of_each_package = pytest.mark.parametrize("package", BY_PACKAGE)
INITS = {module for module, path in MODULES.items() if path.name == "__init__.py"}

MAX_LINES, MAX_FUNCTION_LINES, MAX_FILES, MAX_ENTRIES, MAX_MODULES = 500, 60, 12, 12, 300

# Rule 4: where a library may be imported, in functions too.
PLACES = {
    "zarr": ("store",),
    "PIL": ("store",),
    "pyarrow": ("ingestion", "training.inference.writers"),
    "dask": ("ingestion",),
    "distributed": ("ingestion.cluster",),
    "toolz": ("ingestion.cluster",),  # which distributed brings
    "h5py": ("ingestion.sources.hierarchies",),
    "click": ("cli",),
    "matplotlib": ("diagnostics",),
    "jinja2": ("diagnostics",),
    "transformers": ("training.engines",),
    "torch": ("loader", "models", "optim", "training", "diagnostics", "comparison", "cli"),
}
# Modules in those packages that work without torch all the same.
WITHOUT_TORCH = {
    *(f"loader.{name}" for name in ("budget", "plan", "telemetry", "shared_budget", "device.memory_terms")),
    *(f"loader.reading.{name}" for name in ("block_reader", "workers", "pool_memory", "pool")),
    *(
        f"diagnostics.{name}"
        for name in ("charts", "html", "grids", "run_reader", "run.curves", "run.scores", "run_report")
    ),
    *(f"diagnostics.{name}" for name in ("profile_command", "profile_timeline", "profile_charts", "profile_report")),
    *("comparison.results", "comparison.report"),
    *(f"cli.{name}" for name in ("main", "output", "ingest", "dataset", "plan", "diagnostics")),
    *(f"cli.manual.{name}" for name in ("guide", "completion")),
    *(f"cli.commands.{name}" for name in ("values", "sections", "training_commands", "inference_commands")),
}
# Everything here draws from a seed it is given; what draws from a state of the process is left out.
SEEDED = {"SeedSequence", "Generator", "BitGenerator", "PCG64", "PCG64DXSM", "Philox", "SFC64", "default_rng"}
RUNS_CODE_FROM_DATA = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


class Package(NamedTuple):
    """A package as the page has it."""

    name: str
    may_import: frozenset[str]
    files: tuple[str, ...]


@cache
def page() -> dict[str, Package]:
    """The page's packages in its order, and the files of each in theirs."""
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.M)[1:]:
        name = section[1 : section.index("`", 1)].removesuffix(".py").rstrip("/")
        imports = re.search(r"^May import: (.*)\.$", section, flags=re.M)
        assert imports, f"{PAGE}: what {name} may import is missing"
        files = re.findall(r"^\| `([\w/]+)` \|", section, flags=re.M)
        may_import = re.findall(r"`(\w+)`", imports[1].partition("(")[0] + imports[1].partition(")")[2])
        found[name] = Package(name, frozenset(may_import), tuple(file.replace("/", ".") for file in files))
    return found


@cache
def rank() -> dict[str, int]:
    """Every module's place on the page."""
    names = [f"{name}.{file}" if file else name for name, _, files in page().values() for file in files or ("",)]
    return {name: place for place, name in enumerate(names)}


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
        if inside != name:
            yield inside if inside in MODULES else inside.rpartition(".")[0] or "__init__"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def attributes(module: str) -> Iterator[str]:
    return (dotted(node) for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute))


def is_in(module: str, places: set[str] | tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_the_page_lists_every_module_and_no_other() -> None:
    assert set(rank()) == set(MODULES) - INITS - {"__main__"}
    assert len(rank()) == sum(len(package.files) or 1 for package in page().values()), "a module is listed twice"


def test_the_modules_without_torch_are_there() -> None:
    assert set(MODULES) >= WITHOUT_TORCH


def test_the_page_lists_the_public_face() -> None:
    [listed] = re.findall(r"```python\n(# data.*?)```", PAGE.read_text(), re.DOTALL)
    names = set(re.findall(r"\w+", re.sub("#.*", "", listed)))
    errors = {name for name in dir(streamtrain.errors) if isinstance(getattr(streamtrain.errors, name), type)}
    assert names == set(streamtrain.__all__) - errors - {"__version__"}


def test_a_package_names_only_packages_before_it() -> None:
    before: set[str] = set()
    for name, may_import, _ in page().values():
        assert may_import <= before, f"{name} may import {sorted(may_import - before)}, which the page has further down"
        before.add(name)


@of_each_package
def test_a_module_imports_only_what_stands_before_it(package: str) -> None:
    if package == "__main__":
        assert set(own_imports(package)) == {"cli.main"}
        return
    may_import = page()[package].may_import
    for module in BY_PACKAGE[package]:
        for other in own_imports(module):
            assert other not in ("__init__", "__main__"), f"{module} imports the public face"
            assert other in rank(), f"{module} imports {other}, which is no module; name the one it is in"
            if (target := other.split(".")[0]) != package:
                assert target in may_import, f"{module} imports {other}; {package} may not import {target}"
            else:
                assert rank()[other] < rank()[module], f"{module} imports {other}, which stands after it"


def test_models_import_field_alone_of_the_store() -> None:
    imported = {name for module in MODULES if module.startswith("models.") for name in imports(module)}
    assert {name for name in imported if ".store." in name} <= {"streamtrain.store.layout.Field"}


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {module: set(own_imports(module)) - {module} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


def test_an_init_file_holds_a_docstring_and_nothing_else() -> None:
    assert INITS
    for module in sorted(INITS):
        assert ast.get_docstring(tree(module)), module
        assert len(tree(module).body) == 1, module


@of_each_package
def test_libraries_stay_in_their_place(package: str) -> None:
    for module in BY_PACKAGE[package]:
        used = distributions(module)
        for library, places in PLACES.items():
            assert library not in used or is_in(module, places), f"{module}: {library} is for {', '.join(places)}"
        assert "torch" not in used or not is_in(module, WITHOUT_TORCH), f"{module} works without torch"


def test_what_is_imported_is_declared_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {line.split(">=")[0] for line in project["dependencies"]}
    extra = {"PIL", "pyarrow", "matplotlib", "pandas", "transformers", "h5py", "distributed", "toolz"}
    type_checkers = {"_typeshed"}
    used = {name for module in MODULES for name in distributions(module)} - sys.stdlib_module_names - {"streamtrain"}
    assert used - extra - type_checkers == core


@of_each_package
def test_nothing_runs_code_from_data_or_starts_a_process(package: str) -> None:
    for module in BY_PACKAGE[package]:
        assert not distributions(module) & {*RUNS_CODE_FROM_DATA, "multiprocessing"}, module
        names = {*attributes(module), *imports(module)}
        assert not names & {"os.fork", "torch.load", "torch.save", "concurrent.futures.ProcessPoolExecutor"}, module


@of_each_package
def test_nothing_draws_from_a_random_state_of_the_process(package: str) -> None:
    # models.seeding borrows torch's states, and gives them back.
    for module in (each for each in BY_PACKAGE[package] if each != "models.seeding"):
        assert "random" not in distributions(module), module
        for name in {*attributes(module), *imports(module)}:
            at = f"{module}: {name}"
            for prefix in ("np.random.", "numpy.random."):
                assert not name.startswith(prefix) or name.removeprefix(prefix).split(".")[0] in SEEDED, at
            assert not (name.startswith("torch.") and name.endswith(("manual_seed", "manual_seed_all", ".seed"))), at


@of_each_package
def test_every_thread_has_a_name_to_be_found_by(package: str) -> None:
    named = {"Thread": "name", "ThreadPoolExecutor": "thread_name_prefix"}
    for module in BY_PACKAGE[package]:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and (kind := dotted(node.func).rpartition(".")[2]) in named:
                words = {word.arg for word in node.keywords}
                assert named[kind] in words, f"{module} line {node.lineno}: {kind} has no name"


class Facts(NamedTuple):
    """What a file is judged by."""

    title: str
    n_lines: int
    functions: tuple[tuple[str, int], ...]


@cache
def facts(path: Path) -> Facts:
    text = path.read_text()
    found = ast.parse(text)
    functions = (node for node in ast.walk(found) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    title = (ast.get_docstring(found) or "").partition("\n")[0]
    return Facts(title, len(text.splitlines()), tuple((node.name, n_lines(node)) for node in functions))


in_each_folder = pytest.mark.parametrize("folder", ["streamtrain", "tests", "scripts"])


@in_each_folder
def test_files_and_functions_are_short_enough_to_be_one_idea(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert facts(path).n_lines <= MAX_LINES, path
        assert path.stem not in {"util", "utils", "helper", "helpers", "misc"}, path
        for name, n in facts(path).functions:
            assert n <= MAX_FUNCTION_LINES, f"{path}: {name} has {n} lines"


def n_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function, its docstring aside."""
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) and first.end_lineno else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


def test_folders_are_small_enough_to_be_seen_at_once() -> None:
    files = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {folder: n for folder, n in files.items() if n > MAX_FILES} == {}
    entries = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert len(entries - {"py.typed", "README.md", "guide"}) <= MAX_ENTRIES
    assert len(MODULES) - len(INITS) <= MAX_MODULES


@in_each_folder
def test_a_module_says_what_it_is_with_a_noun(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        title = facts(path).title
        assert title.partition(" ")[0] not in {"What", "How", "Where", "Which", "Whether"}, path
        assert folder != "streamtrain" or title.endswith((".", ":")), path


def test_no_two_classes_have_one_name() -> None:
    names = Counter(node.name for module in MODULES for node in tree(module).body if isinstance(node, ast.ClassDef))
    assert {name: n for name, n in names.items() if n > 1} == {}


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running some code."""
    report = "import sys; print('\\n'.join({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(run.stdout.split())


HEAVY = {"torch", "zarr", "dask", "pyarrow", "numpy"}


def test_import_streamtrain_is_light() -> None:
    assert not loaded_after("import streamtrain") & {*HEAVY, "click"}


def test_help_is_light() -> None:
    assert not loaded_after("from streamtrain.cli.main import main; main(['--help'])") & HEAVY


@pytest.mark.parametrize("module", ["ingest", "dataset", "plan", "diagnostics"])
def test_commands_that_train_nothing_load_no_torch(module: str) -> None:
    assert "torch" not in loaded_after(f"import streamtrain.cli.{module}")


def test_ingestion_the_store_and_the_order_load_no_torch() -> None:
    modules = [name for name in MODULES if name.split(".")[0] in ("system", "store", "ingestion", "shuffle")]
    assert "torch" not in loaded_after("; ".join(f"import streamtrain.{name}" for name in modules))


def strings_of(module: str) -> Iterator[str]:
    """The string constants of a module, docstrings left out."""
    whole = tree(module)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(whole)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        if isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(whole):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


@pytest.mark.parametrize("package", [package for package in BY_PACKAGE if package != "cli"])
def test_the_library_does_not_speak_command_line(package: str) -> None:
    for module in BY_PACKAGE[package]:
        found = [text for text in strings_of(module) if re.search(r"(^|[\s'(=])--[a-z]", text)]
        assert not found, module
