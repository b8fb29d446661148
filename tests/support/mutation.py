"""Breaking one line of the package on purpose, for the length of a block.

A function's code object is replaced by that of its changed source, so every class, instance and
bound method that uses it is changed at once, and nothing needs to be imported again.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import CodeType, FunctionType
from typing import Any


@dataclass(frozen=True)
class Change:
    """`old` becomes `new` in the source of a function.

    Attributes:
        target: Where, as `fastcap.transfer.pool:Chunk.open_to`.
    """

    target: str
    old: str
    new: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        function = find_function(self.target)
        source = source_of(function)
        if source.count(self.old) != 1:
            raise LookupError(f"{self.old!r} is {source.count(self.old)} times in {self.target}")
        with replaced(function, source.replace(self.old, self.new)):
            yield


@contextmanager
def replaced(function: FunctionType, source: str) -> Iterator[None]:
    """`function` runs `source` in the block."""
    before = function.__code__
    function.__code__ = _compiled(function, source)
    try:
        yield
    finally:
        function.__code__ = before


def find_function(target: str) -> FunctionType:
    """The function behind a method, property or decorated function."""
    module_name, path = target.split(":")
    found: Any = import_module(module_name)
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType)
    return found


def source_of(function: FunctionType) -> str:
    return textwrap.dedent(inspect.getsource(function))


def _compiled(function: FunctionType, source: str) -> CodeType:
    # Within a function of the same free variables, so that closures keep their cells.
    free = function.__code__.co_freevars
    header = "from __future__ import annotations\n"
    if free:
        names = ", ".join(free)
        source = f"def outer({names}):\n" + textwrap.indent(source, "    ")
    code = _find_code(
        compile(header + source, f"<mutant of {function.__qualname__}>", "exec"), function
    )
    assert code.co_freevars == free
    return code


def _find_code(code: CodeType, function: FunctionType) -> CodeType:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_name == function.__name__:
                return constant
            if constant.co_name == "outer":
                return _find_code(constant, function)
    raise LookupError(f"{function.__qualname__} is not in its own source")


# Every call into the seam, deleted in turn

SEAM = {
    "current_stream": "{device}.__dict__.setdefault('first_stream', {call})",
    "query": "True",
    "is_capturing": "False",
    "lasts": "True",
    "free_bytes": "None",
}
"""What stands for a call whose answer is used; anything else becomes `None`."""


@dataclass(frozen=True)
class Deletion:
    """One call into the device, left out.

    Attributes:
        target: The function it is in.
        verb: The method of the device.
        number: Which of the function's calls into the device it is.
    """

    target: str
    verb: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.target.removeprefix('fastcap.')} {self.verb}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        function = find_function(self.target)
        tree = ast.parse(source_of(function))
        remover = _Remover(self.number)
        changed = ast.fix_missing_locations(remover.visit(tree))
        with replaced(function, ast.unparse(changed)):
            yield


class _Remover(ast.NodeTransformer):
    def __init__(self, number: int) -> None:
        self._left = number

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        called = _called_on_device(node)
        if called is None:
            return node
        self._left -= 1
        if self._left != -1:
            return node
        device, verb = called
        text = SEAM.get(verb, "None").format(call=ast.unparse(node), device=device)
        return ast.parse(text, mode="eval").body


def _called_on_device(node: ast.Call) -> tuple[str, str] | None:
    """The device, as it is written, and its method, if that is what is called; also a ticket that
    is waited for, which is the device's.
    """
    if not isinstance(node.func, ast.Attribute):
        return None
    device = ast.unparse(node.func.value)
    is_wait = (device, node.func.attr) == ("ticket", "wait")
    is_call = is_wait or device.split(".")[-1] in ("_device", "device")
    return (device, node.func.attr) if is_call else None


def seam_calls(*module_names: str) -> Iterator[Deletion]:
    """Every call into the device in these modules."""
    for module_name in module_names:
        module = import_module(module_name)
        for owner in ast.parse(inspect.getsource(module)).body:
            members = owner.body if isinstance(owner, ast.ClassDef) else [owner]
            for member in members:
                if isinstance(member, ast.FunctionDef):
                    path = member.name
                    if isinstance(owner, ast.ClassDef):
                        path = f"{owner.name}.{path}"
                    yield from _calls_in(member, f"{module_name}:{path}")


class _Finder(ast.NodeVisitor):
    """Calls in the order in which `_Remover` meets them."""

    def __init__(self) -> None:
        self.verbs: list[str] = []

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = _called_on_device(node)
        if called is not None:
            self.verbs.append(called[1])


def _calls_in(function: ast.FunctionDef, target: str) -> Iterator[Deletion]:
    finder = _Finder()
    finder.visit(function)
    for number, verb in enumerate(finder.verbs):
        yield Deletion(target, verb, number)
