"""Models of the user's own code: a function, a class or a ready module, in a file or a package."""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from torch import nn

from streamtrain.errors import Argument, Fix, StreamtrainError, UsageError, unknown_name

_LONGEST_VALUE: Final = 60
_MOST_NAMES: Final = 8
_FORMS: Final = "FILE.py:NAME or PACKAGE.MODULE:NAME"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeName:
    """A place of code as it was named: a file or a module, and a name in it."""

    text: str
    place: str
    name: str
    is_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeByCode:
    """A model that the user's code made."""

    module: nn.Module
    # What it was called with, in words; None for a module that was ready.
    called_with: str | None
    # Of the file as it ran; None for a package.
    sha256: str | None


def parse_code_name(model: str) -> CodeName | None:
    """Read ``FILE.py:NAME``, ``PACKAGE.MODULE:NAME`` or ``PACKAGE.MODULE.NAME``; None for what is none of these."""
    if is_file_model(model):
        file, _, name = model.rpartition(":")
        if not file or not _is_name(name):
            bare = file if file.endswith(".py") else model.removesuffix(":")
            check_file(bare)
            names = _names_in(Path(bare))
            told = f"; it has {', '.join(names[:_MOST_NAMES])}" if names else ""
            raise UsageError(
                f"model {model!r} names no function, class or module in the file{told}",
                fix=Fix(Argument("model", f"{bare}:{names[0] if names else 'NAME'}"), ", say"),
            )
        return CodeName(text=model, place=file, name=name, is_file=True)
    place, _, name = model.partition(":") if ":" in model else model.rpartition(".")
    if _is_name(place) and _is_name(name):
        return CodeName(text=model, place=place, name=name, is_file=False)
    return None


def is_file_model(model: str) -> bool:
    """Whether a model is named in a Python file."""
    return ".py:" in model or model.endswith(".py")


def _is_name(words: str) -> bool:
    return bool(words) and all(word.isidentifier() for word in words.split("."))


def is_importable(module: str) -> bool:
    """Whether Python finds a top-level module; nothing is imported."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def make_from_code(code: CodeName, offered: Mapping[str, object], given: Mapping[str, object]) -> MadeByCode:
    """Call what is named with what it takes of the ``offered`` arguments, and all of the ``given`` ones."""
    module, digest = _import_file(Path(code.place)) if code.is_file else (_import_module(code), None)
    named = _find(module, code)
    if isinstance(named, nn.Module):
        if given:
            what = f"{code.text} is a ready module, which is not called"
            raise UsageError(what, fix=Fix("leave out ", Argument("model_args")))
        made, told = _run(code, lambda: copy.deepcopy(named)), None
    elif callable(named):
        taken = _arguments(named, code, offered, given)
        made = _run(code, lambda: _call(named, taken))
        told = ", ".join(f"{name}={_brief(name, value)}" for name, value in taken.items())
    else:
        raise UsageError(
            f"{code.text} is {type(named).__name__}, not a function, class or torch.nn.Module",
            fix="name a function or a class that makes the model, or the model itself",
        )
    if not isinstance(made, nn.Module):
        raise UsageError(f"{code.text} returned {type(made).__name__}, not a torch.nn.Module", fix="return the model")
    return MadeByCode(module=made, called_with=told, sha256=digest)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file of code."""
    return hashlib.sha256(_read(file)).hexdigest()


def _names_in(path: Path) -> list[str]:
    """List the classes and functions of a file, modules of torch first, without running it."""
    try:
        found = ast.parse(_read(path)).body
    except (SyntaxError, ValueError):
        return []
    named = [each for each in found if isinstance(each, ast.ClassDef | ast.FunctionDef)]
    is_module = {
        each.name: isinstance(each, ast.ClassDef) and "Module" in map(_last_name, each.bases) for each in named
    }
    return sorted((name for name in is_module if not name.startswith("_")), key=lambda name: not is_module[name])


def _last_name(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def check_file(file: str) -> None:
    """Refuse a file of code that is not there, with the nearest one that is."""
    path = Path(file)
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        found = {str(file): file for file in sorted(folder.glob("*.py"))}
        near = difflib.get_close_matches(str(folder / path.name), found, n=1, cutoff=0.3)
        raise UsageError(
            f"model file {path} does not exist",
            fix=f"did you mean {near[0]!r}?" if near else "FILE.py:NAME, relative to the current directory",
        )


def _read(path: Path) -> bytes:
    check_file(str(path))
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"model file {path} cannot be read: {error.strerror}"
        raise UsageError(what, fix="give this user the permission, or another file") from error


def _import_file(path: Path) -> tuple[ModuleType, str]:
    """Run a file as a module of its own; return it, and the SHA-256 of the very bytes that ran."""
    source = _read(path)
    name = f"streamtrain_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look a class's module up there
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(
            f"{path} cannot be imported: {_last_line(error)}",
            where=_place(error, str(path)),
            fix=_import_fix(path, error),
        ) from error
    return module, hashlib.sha256(source).hexdigest()


def _import_fix(path: Path, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        folder = shlex.quote(str(path.resolve().parent))
        return f"install {error.name}, or put its folder on the path: PYTHONPATH={folder}"
    return "correct the file"


def _import_module(code: CodeName) -> ModuleType:
    try:
        return importlib.import_module(code.place)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (code.place == missing or code.place.startswith(f"{missing}.")):
            raise UsageError(
                f"there is no module {missing!r} for model {code.text}",
                fix=f"install its package, or put its folder on PYTHONPATH; a file is {_FORMS.partition(' ')[0]}",
            ) from error
        what = f"{code.place} cannot be imported: {_last_line(error)}"
        raise UsageError(what, where=_place(error, None), fix="correct the package, or install it again") from error


def _find(module: ModuleType, code: CodeName) -> object:
    found: object = module
    for word in code.name.split("."):
        known = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
        if not hasattr(found, word):
            near = difflib.get_close_matches(word, known, n=1)
            raise UsageError(
                f"{code.place} has no {word!r}",
                fix=Fix(Argument("model", f"{code.place}:{near[0]}"))
                if near and "." not in code.name
                else "name a function, a class or a module that is defined in it",
            )
        found = getattr(found, word)
    return found


def _arguments(
    factory: Callable[..., object], code: CodeName, offered: Mapping[str, object], given: Mapping[str, object]
) -> dict[str, object]:
    """Choose what a factory is called with, by its signature."""
    parameters = _parameters(factory)
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name in given:
        if name not in parameters and not takes_any:
            raise unknown_name(f"argument of {code.text}", name, parameters)
    single = {
        name: each
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    }
    chosen = {name: offered[name] for name in single if name in offered} | dict(given)
    others = [name for name, each in single.items() if each.default is each.empty and name not in chosen]
    if len(others) == 1 and "dataset" in offered:
        chosen[others[0]] = offered["dataset"]
    elif len(others) == 2 and set(chosen) == set(given):
        chosen |= zip(others, (offered["input_shape"], offered["n_outputs"]), strict=True)
    elif others:
        raise UsageError(
            f"{code.text} needs {', '.join(others)}, which are not known here",
            why=f"Known by name: {', '.join(offered)}",
            fix=Fix("give each: ", Argument("model_args", dict.fromkeys(others, 1)), ", say"),
        )
    return {name: chosen[name] for name in (*single, *given) if name in chosen}


def _parameters(factory: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:
        # A builtin may have none to be seen.
        return {}


def _call(factory: Callable[..., object], arguments: Mapping[str, object]) -> object:
    by_place: list[object] = []
    named = dict(arguments)
    parameters = _parameters(factory)
    for name, each in parameters.items():
        if each.kind is not each.POSITIONAL_ONLY or name not in named:
            break
        by_place.append(named.pop(name))
    return factory(*by_place, **named)


def _run(code: CodeName, make: Callable[[], object]) -> object:
    try:
        return make()
    except StreamtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{code.text} failed: {_last_line(error)}",
            where=_place(error, code.place if code.is_file else None),
            fix="correct it, or what it is called with",
        ) from error


def _last_line(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    return text.splitlines()[-1].strip() if text else type(error).__name__


def _place(error: BaseException, file: str | None) -> str | None:
    """Return ``FILE.py:LINE`` of an error: the last line that it passed of the user's file, else of any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename == file] or [
        frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")
    ]
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else None


def _brief(name: str, value: Any) -> str:
    if hasattr(value, "layout"):
        return "the dataset"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
