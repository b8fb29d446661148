"""Write `docs/reference.md` from the docstrings: `python docs/make_reference.py`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastcap
from fastcap import bench, datasets, errors, huggingface, planning

TARGET = Path(__file__).parent / "reference.md"
RETURNED = (
    "BatchRecords",
    "Comparison",
    "Costs",
    "MemoryPlan",
    "Plan",
    "Record",
    "SitePlan",
    "Statistics",
    "Stream",
    "Term",
)
"""Classes that callers are given and do not make."""

SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")


def render() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Written from the docstrings by `docs/make_reference.py`; a test keeps it up to date.",
        "",
    ]
    for name in sorted(fastcap.__all__, key=_reading_order):
        lines += _render_name(f"fastcap.{name}", getattr(fastcap, name))
    for name in ("Machine", "Plan", "SitePlan", "MemoryPlan", "Costs", "Term", "Comparison"):
        lines += _render_name(f"fastcap.planning.{name}", getattr(planning, name))
    for name in huggingface.__all__:
        lines += _render_name(f"fastcap.huggingface.{name}", getattr(huggingface, name))
    for name in datasets.__all__:
        lines += _render_name(f"fastcap.datasets.{name}", getattr(datasets, name))
    for name in bench.__all__:
        if callable(getattr(bench, name)):
            lines += _render_name(f"fastcap.bench.{name}", getattr(bench, name))
    lines += ["## fastcap.errors", "", "```text", inspect.getdoc(errors) or "", "```", ""]
    return "\n".join(lines)


def _reading_order(name: str) -> tuple[bool, str]:
    main = (
        "ActivationStore",
        "extract_representations",
        "list_sites",
        "plan",
        "save_activations",
        "stream",
    )
    return name not in main, name.lower()


def _render_name(path: str, thing: Any) -> Iterator[str]:
    package, _, name = path.rpartition(".")
    yield from (f"## {name if package == 'fastcap' else path}", "")
    is_made_by_callers = not issubclass(thing, Exception) if inspect.isclass(thing) else True
    if is_made_by_callers and name not in RETURNED:
        yield from ("```python", _signature(path, thing), "```", "")
    yield from _render_doc(thing)
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        for member, value in vars(thing).items():
            if not member.startswith("_"):
                yield from _render_member(thing, member, value)


def _render_member(owner: type, member: str, value: Any) -> Iterator[str]:
    if isinstance(value, property):
        yield from (f"### {owner.__name__}.{member}", "", "*property*", "")
        yield from _render_doc(value)
    elif inspect.isfunction(value):
        signature = _signature(member, value).replace("(self, ", "(").replace("(self)", "()")
        yield from (f"### {owner.__name__}.{member}", "", "```python", signature, "```", "")
        yield from _render_doc(value)


def _signature(name: str, thing: Any) -> str:
    signature = inspect.signature(thing)
    flat = f"{name}{signature}".replace("'", "")
    if len(flat) <= 96:
        return flat
    marks = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in marks:
            marks.append("*")
        marks.append(str(parameter).replace("'", ""))
    returns = str(signature.return_annotation).strip("'")
    arrow = "" if inspect.isclass(thing) else f" -> {returns}"
    return "\n".join([f"{name}(", *(f"    {mark}," for mark in marks), f"){arrow}"])


def _render_doc(thing: Any) -> Iterator[str]:
    doc = inspect.getdoc(thing) or ""
    in_code = False
    for line in doc.splitlines():
        title = line.removesuffix(":")
        if title in SECTIONS and line.endswith(":"):
            yield f"**{title}**"
            yield ""
            continue
        text = line.removeprefix("    ")
        is_code = text.startswith((">>> ", "... ")) or (in_code and bool(text))
        if is_code != in_code:
            yield "```python" if is_code else "```"
            in_code = is_code
        yield _entry(text) if line.startswith("    ") and not is_code else text
    if in_code:
        yield "```"
    yield ""


def _entry(text: str) -> str:
    """One line of a section: `name: what it is` starts a list item, deeper lines go on."""
    if text.startswith("    ") or not text:
        return f"  {text.strip()}".rstrip()
    name, colon, rest = text.partition(": ")
    return f"* `{name}`: {rest}" if colon and " " not in name else text


if __name__ == "__main__":
    TARGET.write_text(render())
