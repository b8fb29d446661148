"""Policies: which way imports point, what is public, and what the engine must not know."""

from __future__ import annotations

import ast
import operator
import subprocess
import sys
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastcap
from fastcap import errors

PACKAGE = Path(fastcap.__file__).parent
LEVELS = [
    {"_version", "errors", "formatting", "rates"},
    {"records"},
    {"host_memory", "progress", "spec", "warn"},
    {"devices", "reference", "saving"},
    {"model", "transfer"},
    {"fingerprint", "selection"},
    {"archive", "batching", "engine"},
    {"consumers", "request"},
    {"activations", "streaming"},
    {"planning", "representations"},
    {"demo", "extraction", "huggingface"},
    {"bench", "datasets"},
    {"cli"},
    {"__main__"},
]
"""Lowest first. A module imports from lower levels only (docs/design/architecture.md)."""
ROOMS = set().union(*LEVELS)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        yield name, ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("fastcap"):
            rest = node.module.split(".")[1:]
            yield from rest[:1] if rest else (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("fastcap."):
                    yield alias.name.split(".")[1]


def level_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if room in rooms)


def test_every_module_has_a_level() -> None:
    rooms = {name.split(".")[0] for name, _ in modules()} - {"__init__"}
    assert rooms == ROOMS


def test_imports_point_down() -> None:
    upward = [
        f"{name} imports {target}"
        for name, tree in modules()
        if (room := name.split(".")[0]) != "__init__"
        for target in imported(tree)
        if target != room and target in ROOMS and level_of(target) >= level_of(room)
    ]
    assert not upward


def test_modules_of_a_room_have_an_order() -> None:
    """Nor do imports for types alone run in circles."""
    paths = {f"fastcap.{name.removesuffix('.__init__')}": tree for name, tree in modules()}
    graph = {name: set(needed(tree, paths)) - {name} for name, tree in paths.items()}
    assert graph["fastcap.planning.plans"] > {"fastcap.planning.table"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def needed(tree: ast.Module, known: Container[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                target = full if full in known else node.module
                if target in known:
                    yield target


def test_the_import_check_sees_an_upward_import() -> None:
    tree = ast.parse("from fastcap.engine import Engine\nfrom fastcap import cli")
    assert list(imported(tree)) == ["engine", "cli"]
    assert level_of("engine") > level_of("transfer")


def test_only_the_accelerator_names_accelerators() -> None:
    naming = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "torch"
        and node.attr in ("cuda", "accelerator", "mps", "xpu", "Stream", "Event")
        and name != "devices.accelerator"
    ]
    assert not naming


def test_engine_and_transfers_do_not_ask_what_kind_of_device_it_is() -> None:
    # A tensor that the caller gives as `out=` may be anywhere, and is asked in consumers.out.
    kinds = ("AcceleratorDevice", "SimulatedDevice", "SynchronousDevice")
    rooms = ("engine", "transfer", "consumers", "streaming", "activations")
    asking = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        if name.split(".")[0] in rooms
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id in kinds)
        or (isinstance(node, ast.Attribute) and node.attr == "type" and name != "consumers.out")
        or (isinstance(node, ast.Constant) and node.value in ("cuda", "cpu:0", "mps"))
    ]
    assert not asking


def test_exported_names_are_sorted_documented_and_there() -> None:
    assert fastcap.__all__ == sorted(fastcap.__all__)
    for name in fastcap.__all__:
        assert getattr(fastcap, name).__doc__
    assert len(fastcap.__all__) <= 18


def test_errors_are_sorted_documented_and_in_the_drawn_tree() -> None:
    assert errors.__all__ == sorted(errors.__all__)
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, errors.FastcapError | UserWarning)
        assert name in str(errors.__doc__)
        assert kind.__doc__


def test_nothing_prints_but_the_command_line() -> None:
    printing = [
        name
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
        and name.split(".")[0] not in ("cli", "demo")
    ]
    assert not printing


def test_functions_and_files_stay_short() -> None:
    long_files = [
        path.name for path in PACKAGE.rglob("*.py") if len(path.read_text().splitlines()) > 400
    ]
    assert not long_files
    long_functions = [
        f"{name}.{node.name}"
        for name, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and body_lines(node) > 60
    ]
    assert not long_functions


def body_lines(function: ast.FunctionDef) -> int:
    first = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


OPTIONAL = [
    "transformers",
    "typer",
    "rich",
    "tqdm",
    "sklearn",
    "matplotlib",
    "pytest",
    "hypothesis",
]


LOADED_WHEN_NAMED = ["archive", "extraction", "model.listing", "planning"]


def test_importing_fastcap_starts_no_device_and_imports_no_extra() -> None:
    # torch imports some of these itself where they are installed: only what fastcap adds counts.
    program = (
        "import sys, torch, torch.utils.data\n"
        "before = set(sys.modules)\n"
        "import fastcap\n"
        "[getattr(fastcap, name) for name in fastcap.__all__]\n"
        f"added = (set(sys.modules) - before) & set({OPTIONAL!r})\n"
        "assert not added, added\n"
        "assert 'torch._dynamo' not in set(sys.modules) - before\n"
        "assert not torch.cuda.is_initialized()\n"
        "import threading\n"
        "assert threading.active_count() == 1\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_captures_into_memory_does_not_load_the_rest() -> None:
    program = (
        "import sys, fastcap\n"
        f"rest = {LOADED_WHEN_NAMED!r}\n"
        "def loaded(): return [name for name in rest if f'fastcap.{name}' in sys.modules]\n"
        "fastcap.ActivationStore, fastcap.extract_representations, fastcap.save_activations\n"
        "fastcap.stream, fastcap.Record\n"
        "assert loaded() == [], loaded()\n"
        "assert set(dir(fastcap)) >= set(fastcap.__all__)\n"
        "fastcap.planning.Machine, fastcap.extract, fastcap.open_archive, fastcap.list_sites\n"
        "assert loaded() == rest, loaded()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastcap' has no attribute 'extrat'"):
        operator.attrgetter("extrat")(fastcap)
    with pytest.raises(ImportError, match="extrat"):
        exec("from fastcap import extrat")
