"""What a function does: its source, and the values that it holds and reads."""

from __future__ import annotations

import dis
import functools
import inspect
import site
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from typing import Any

from fastcap.fingerprint.digests import name_of, short_hash

LIBRARIES = (
    *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
)
"""Where functions are that do what their names say: what those read is not looked at."""

MOST_ITEMS = 1000
"""Of a global that is looked into; a longer one is data, such as a dataset."""

_seen: ContextVar[set[int] | None] = ContextVar("seen", default=None)
"""Functions that are part of the description under way: they call one another, and themselves."""


def describe_function(
    function: types.FunctionType, levels: int, describe: Callable[[Any, int], Any]
) -> Any:
    """Name, source, defaults, closure and globals, as JSON; its name alone where it is met again.

    Args:
        function: One that is written in Python.
        levels: How deep its values are looked into.
        describe: Describes a value.
    """
    seen = _seen.get()
    if seen is None:
        token = _seen.set(set())
        try:
            return describe_function(function, levels, describe)
        finally:
            _seen.reset(token)
    if id(function) in seen:
        return name_of(function)
    seen.add(id(function))
    held = {
        "closure": dict(_closure(function)),
        "defaults": function.__defaults__ or (),
        "keyword_defaults": function.__kwdefaults__ or {},
        "globals": {} if _is_library(function) else dict(_globals(function)),
    }
    described = {name: describe(each, levels) for name, each in held.items() if each}
    return {"function": name_of(function), **_code(function), **described}


def code_of(function: Any) -> str:
    """The name and code of anything that can be called, without what it holds."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        return name_of(function if hasattr(function, "__qualname__") else type(function))
    return " ".join([name_of(function), *_code(function).values()])


def _closure(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            yield name, None  # a name that has no value yet


def _is_library(function: types.FunctionType) -> bool:
    is_own = (function.__module__ or "").partition(".")[0] == "fastcap"
    return is_own or function.__code__.co_filename.startswith(LIBRARIES)


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function reads from the module that it is in. What it writes there is a result."""
    read, written = set(), set()
    for step in _instructions(function.__code__):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            written.add(step.argval)
    for name in sorted(read - written):
        value = function.__globals__.get(name)
        if name.startswith("__") or value is None or isinstance(value, types.ModuleType):
            continue
        may_be_long = isinstance(value, Sequence | Mapping | AbstractSet)
        is_data = may_be_long and not isinstance(value, str | bytes) and len(value) > MOST_ITEMS
        yield name, type(value) if is_data else value


def _instructions(code: types.CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _instructions(constant)


def _code(function: types.FunctionType) -> dict[str, str]:
    """A hash of what a function does.

    The source of a lambda is the line it stands in, which other lambdas may share: its code says
    what is meant, and is of one minor version of Python.
    """
    if function.__name__ != "<lambda>":
        try:
            return {"source": short_hash(inspect.cleandoc(inspect.getsource(function)).encode())}
        except (OSError, TypeError):  # typed at a prompt, or made by exec
            pass
    return {"code": short_hash(repr(_constant(function.__code__)).encode())}


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        names = [value.co_names, value.co_varnames, value.co_freevars]
        return [value.co_code.hex(), names, _constant(value.co_consts)]
    if isinstance(value, tuple):
        return [_constant(each) for each in value]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
