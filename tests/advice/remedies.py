"""Remedies of the library, listed from its code: every place that gives one, with its words as a pattern."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Final

import streamtrain
from streamtrain.errors import Argument

PACKAGE: Final = Path(streamtrain.__file__).parent
HOLE: Final = "{}"
"""The mark for what is computed in a remedy's words."""
_MANY: Final = 2_000


@dataclass(frozen=True, slots=True)
class Remedy:
    """A remedy: the file and function that give it, and its words.

    Where ``returned`` is set a function made it for others, which may keep it, and name one more way behind it: then
    the words alone are looked for.
    """

    file: str
    function: str
    words: str
    returned: bool = False

    @property
    def key(self) -> str:
        """Its name in the tables of worlds and of reasons."""
        return f"{self.file}:{self.function}: {self.words}"

    def is_said_by(self, fix: str, places: set[tuple[str, str]]) -> bool:
        """Whether a message with this fix, made under these files and functions, gives it."""
        pattern = ".*".join(map(re.escape, self.words.split(HOLE)))
        is_here = any(file == self.file and function.endswith(self.function) for file, function in places)
        more = "(, or .*)?" if self.returned else ""
        return (is_here or self.returned) and re.fullmatch(pattern + more, fix, re.DOTALL) is not None


@cache
def all_remedies() -> Mapping[str, Remedy]:
    """Every remedy of the library by its key, in the order of files."""
    trees = _trees()
    takers = _takers(trees)
    makers = _makers(trees, takers)
    found = (remedy for file, tree in trees.items() for remedy in _remedies_of(file, tree, takers, makers))
    return {remedy.key: remedy for remedy in found if remedy.words.replace(HOLE, "").strip(" ,;.")}


@cache
def _trees() -> Mapping[str, ast.Module]:
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def arguments_named() -> set[str]:
    """The names of all arguments that remedies have as values."""
    calls = (node for tree in _trees().values() for _, node in _inside(tree) if _is_named_call(node))
    return {
        str(call.args[0].value)
        for call in calls
        if call.func.id == "Argument" and call.args and isinstance(call.args[0], ast.Constant)
    }


def _takers(trees: Mapping[str, ast.Module]) -> dict[str, int]:
    """Functions that take a remedy by position -> where it stands among their arguments."""
    return {
        node.name: names.index("fix")
        for tree in trees.values()
        for _, node in _inside(tree)
        if isinstance(node, ast.FunctionDef) and "fix" in (names := [argument.arg for argument in node.args.args])
    }


def _makers(trees: Mapping[str, ast.Module], takers: Mapping[str, int]) -> set[str]:
    """Functions whose result is used as a remedy, or returned by one of them."""
    used = (node for tree in trees.values() for _, node in _given(tree, takers))
    called = {call.func.id for node in used for call in ast.walk(node) if _is_named_call(call)}
    defined = [node for tree in trees.values() for _, node in _inside(tree) if isinstance(node, ast.FunctionDef)]
    makers = called & {node.name for node in defined}
    returns = [node for of in defined if of.name in makers for node in ast.walk(of) if isinstance(node, ast.Return)]
    handed_on = {node.value.func.id for node in returns if _is_named_call(node.value)}  # type: ignore[arg-type, union-attr]
    return makers | handed_on & {node.name for node in defined}


def _is_named_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


def _given(tree: ast.Module, takers: Mapping[str, int]) -> Iterator[tuple[str, ast.expr]]:
    """Every expression given as a remedy: ``fix=``, a variable or attribute ``fix``, or at a taker's place.

    A class that gives a remedy to its base class has it in ``_instead``.
    """
    for function, node in _inside(tree):
        match node:
            case ast.Call():
                yield from ((function, keyword.value) for keyword in node.keywords if keyword.arg == "fix")
                place = takers.get(getattr(node.func, "id", ""), len(node.args))
                yield from ((function, argument) for argument in node.args[place : place + 1])
            case ast.Assign(targets=[ast.Name(id="fix" | "_instead") | ast.Attribute(attr="fix")]):
                yield function, node.value
            case ast.Assign(targets=[ast.Tuple(elts=[*_, ast.Name(id="fix")])], value=value):
                yield function, _last(value)
            case ast.Dict():
                pairs = zip(node.keys, node.values, strict=True)
                yield from ((function, value) for key, value in pairs if getattr(key, "value", "") == "fix")


def _last(value: ast.expr) -> ast.expr:
    """The remedy of a pair or more, behind what it is told with."""
    return value.elts[-1] if isinstance(value, ast.Tuple) else value


def _keeps_for_later(node: ast.AST) -> bool:
    """Whether a remedy is given to an error that is there already, or to a value that is no error yet."""
    match node:
        case ast.Assign(targets=[ast.Attribute(attr="fix") | ast.Name(id="_instead")]):
            return True
        case ast.Call(func=ast.Name(id="Difference" | "SmallBatch")):
            return True
        case _:
            return False


@cache
def _inside(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """All nodes of a module, outer ones first, each with the classes and functions around it."""
    found: list[tuple[str, ast.AST]] = []

    def add(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            is_named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            inner = f"{function}.{child.name}".lstrip(".") if is_named else function  # type: ignore[attr-defined]
            found.append((inner, child))
            add(child, inner)

    add(tree, "")
    return found


def _remedies_of(file: str, tree: ast.Module, takers: Mapping[str, int], makers: set[str]) -> Iterator[Remedy]:
    is_later = {function for function, node in _inside(tree) if _keeps_for_later(node)}
    for function, value in _given(tree, takers):
        yield from (Remedy(file, function, words, returned=function in is_later) for words in _words(value, file))
    for function, node in _inside(tree):
        if isinstance(node, ast.Return) and node.value is not None and function.rpartition(".")[2] in makers:
            yield from (Remedy(file, function, words, returned=True) for words in _words(_last(node.value), file))


def _words(node: ast.expr, file: str) -> list[str]:
    """The words of a remedy, each way they may come out."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.Constant(value=None):
            return [""]
        case ast.Name(id=name):
            return [_constant(file, name)]
        case ast.JoinedStr(values=parts):
            return ["".join(part.value if isinstance(part, ast.Constant) else HOLE for part in parts)]  # type: ignore[misc]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _joined([left, right], file)
        case ast.IfExp(body=body, orelse=other):
            return _words(body, file) + _words(other, file)
        case ast.BoolOp(values=values):
            return [words for value in values for words in _words(value, file)]
        case ast.Call(func=ast.Name(id="Fix"), args=parts):
            return _joined([inner for part in parts for inner in _unpacked(part)], file)
        case ast.Call(func=ast.Name(id="Argument"), args=[ast.Constant(value=name), *values], keywords=keywords):
            return [f"{name}={_value(values, bool(keywords))}"]
        case ast.Call(func=ast.Name(id="Call"), args=[ast.Constant(value=name), *_]):
            return [f"streamtrain.{name}({HOLE})"]
        case ast.Call(func=ast.Name(id="remedy"), args=[_, otherwise]):
            return _words(otherwise, file)
        case _:
            return [HOLE]


def _unpacked(part: ast.expr) -> list[ast.expr]:
    return part.value.elts if isinstance(part, ast.Starred) and isinstance(part.value, ast.Tuple) else [part]


def _value(values: list[ast.expr], has_size: bool) -> str:
    if not values:
        return HOLE if has_size else ""
    try:
        return repr(ast.literal_eval(values[0]))
    except ValueError:
        return HOLE


def _joined(parts: list[ast.expr], file: str) -> list[str]:
    ways = list(product(*(_words(part, file) for part in parts)))
    assert len(ways) < _MANY
    return ["".join(way) for way in ways]


def _constant(file: str, name: str) -> str:
    """The text, or the argument, of a module's constant; a hole where it is neither."""
    module = importlib.import_module(f"streamtrain.{file.removesuffix('.py').replace('/', '.')}")
    value = getattr(module, name, None)
    return str(value) if isinstance(value, str | Argument) else HOLE
