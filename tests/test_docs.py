"""Documents are true: examples run, links lead somewhere, and the site builds with every name."""

from __future__ import annotations

import doctest
import json
import os
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fastcap
from fastcap import bench, datasets, errors, huggingface, planning
from tests import architecture

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
FRAGMENT = re.compile(r"^```py\n(.*?)^```", re.DOTALL | re.MULTILINE)
OUTSIDE = re.compile(r"<(?:script|img|link)[^>]*(?:src|href)=\"?https?://[^>]*")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_python_examples_of_a_page_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for example in CODE.findall(page.read_text()):
        exec(compile(example, relative(page), "exec"), names)


def module_names() -> list[str]:
    return [
        module.name
        for module in pkgutil.walk_packages(fastcap.__path__, "fastcap.")
        if not module.name.startswith(("fastcap.demo", "fastcap.cli"))
    ]


@pytest.mark.parametrize("name", module_names())
def test_the_examples_in_docstrings_give_what_they_say(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_public_callables_have_an_example() -> None:
    for name in (
        "ActivationStore",
        "extract_representations",
        "list_sites",
        "plan",
        "save_activations",
        "stream",
    ):
        assert ">>> " in str(getattr(fastcap, name).__doc__)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = [target for target, _ in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


REFERENCE = {
    line.removeprefix("::: ").strip()
    for path in ROOT.glob("docs/reference/*.md")
    for line in path.read_text().splitlines()
    if line.startswith("::: ")
}
PUBLIC = [fastcap, bench, datasets, huggingface, planning]


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: str(module.__name__))
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    names = set(module.__all__) - set(errors.__all__)
    missing = {f"{module.__name__}.{name}" for name in names} - REFERENCE
    # Documented by their shorter names.
    assert missing <= {"fastcap.planning.plan", "fastcap.planning.Plan"}
    assert "fastcap.errors" in REFERENCE


def test_the_site_builds_without_a_warning_or_an_outside_resource(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="builds the site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    home = (tmp_path / "index.html").read_text()
    assert "extract_representations" in home
    assert OUTSIDE.findall(home) == []
    capture = (tmp_path / "reference" / "capture.html").read_text()
    assert 'id="fastcap.ActivationStore.get"' in capture


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_python_blocks_that_do_not_run_say_so(page: Path) -> None:
    silent = [
        block for block in FRAGMENT.findall(page.read_text()) if not block.startswith("# Not run")
    ]
    assert not silent


def test_the_drawn_layers_are_those_that_imports_obey() -> None:
    page = architecture.PAGE.read_text()
    assert architecture.BLOCK.search(page)
    assert page == architecture.rewritten(page), "run: python -m tests.architecture"


def test_files_named_in_comments_exist() -> None:
    named = re.compile(r"\b((?:docs|tests|benchmarks|fastcap)/[\w./-]+\.(?:md|py))\b")
    missing = {
        f"{relative(path)}: {target}"
        for path in ROOT.rglob("*.py")
        if not any(part == "build" or part[0] == "." for part in path.relative_to(ROOT).parts)
        for target in named.findall(path.read_text())
        if not (ROOT / target).exists()
    }
    assert not missing


def test_examples_and_links_of_a_page_are_found() -> None:
    page = "```python\nassert False\n```\nSee [nowhere](missing.md) and [there](a.md#part).\n"
    assert CODE.findall(page) == ["assert False\n"]
    assert LINK.findall(page) == [("missing.md", ""), ("a.md", "#part")]


def test_the_file_for_ci_runs_as_a_benchmark_and_as_a_test(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="times what it runs")
    page = (ROOT / "docs" / "measuring.md").read_text()
    [example] = [code for code in CODE.findall(page) if "def test_overhead" in code]
    (tmp_path / "test_capture_cost.py").write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", "--benchmark-json=out.json"]
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for options in (quick, ["--benchmark-disable"]):
        ran = subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env={**ours, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
        assert "3 passed" in ran.stdout
    benchmarks = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    extra = {each["name"]: each["extra_info"] for each in benchmarks}["test_overhead"]
    assert set(extra) == {"hook", "fastcap", "captured_bytes"}
    assert extra["captured_bytes"] == 2 * 4 * 32 * 64 * 4
