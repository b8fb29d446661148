"""Docstrings of standard library packages, read from source files without importing them."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcap.errors import FastcapError

# Packages with at least 120 docstrings each in CPython 3.11, none of them deprecated.
PACKAGES = (
    "asyncio",
    "email",
    "importlib",
    "logging",
    "xml",
    "multiprocessing",
    "unittest",
    "http",
)
MIN_CHARS = 40
TEST_FOLDERS = frozenset({"test", "tests"})
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring and where it stands.

    Attributes:
        text: The docstring, without its indentation.
        package: The class a probe has to tell, such as `asyncio`.
        source: The file, relative to the standard library, such as `asyncio/events.py`.
    """

    text: str
    package: str
    source: str


def standard_library() -> Path:
    """The folder with the standard library's source files."""
    return Path(sysconfig.get_path("stdlib"))


def read_docstrings(
    root: Path, packages: Iterable[str], limit: int, seed: int = 0
) -> list[Docstring]:
    """At most `limit` docstrings per package, in the order of packages and files.

    A text that occurs twice is taken once. Packages that have more than
    `limit` are sampled; the same `seed` gives the same sample.

    Raises:
        FastcapError: A package has no source files with docstrings under `root`.
    """
    chosen: list[Docstring] = []
    seen: set[str] = set()
    for package in packages:
        found = [d for d in _in_package(root, package) if not _is_repeated(d.text, seen)]
        if not found:
            raise FastcapError(
                f"Found no docstrings of {package!r} under {str(root)!r}. The demo reads the "
                "standard library's .py files; use a Python that was installed with them."
            )
        chosen += _sample(found, limit, seed)
    return chosen


def _in_package(root: Path, package: str) -> Iterator[Docstring]:
    for path in sorted((root / package).rglob("*.py")):
        relative = path.relative_to(root)
        if not TEST_FOLDERS.intersection(relative.parts):
            for text in _in_file(path):
                yield Docstring(text, package, relative.as_posix())


def _in_file(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if text is not None and len(text) >= MIN_CHARS:
            yield text


def _is_repeated(text: str, seen: set[str]) -> bool:
    if text in seen:
        return True
    seen.add(text)
    return False


def _sample(docstrings: list[Docstring], limit: int, seed: int) -> list[Docstring]:
    if len(docstrings) <= limit:
        return docstrings
    indices = random.Random(seed).sample(range(len(docstrings)), limit)
    return [docstrings[index] for index in sorted(indices)]
