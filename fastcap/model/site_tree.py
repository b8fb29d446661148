"""What is known of a site, and how a list of them shows: as a tree, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

INDENT = "  "


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One tensor that a module returned, or was called with, at its last call.

    Attributes:
        part: What to write behind the module's name, such as `:output[1]`.
        shape: Of the whole batch.
        dtype: What the module produced.
        bytes_per_sample: `None` where the first dimension is not the batch.
    """

    part: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes_per_sample: int | None


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """One module of a model.

    Attributes:
        name: The site, as `sites=` takes it.
        type: The name of the module's class.
        n_calls: How often the example's pass called it; `None` without an example.
        parts: What can be captured there: outputs, then inputs. Empty without an example.
    """

    name: str
    type: str
    n_calls: int | None = None
    parts: tuple[PartInfo, ...] = ()


@dataclass
class _Node:
    """One segment of the names. Nodes that differ in their label alone compare equal."""

    label: str = field(compare=False)
    what: tuple[Any, ...] | None = None
    children: list[_Node] = field(default_factory=list)


def to_json(sites: Iterable[SiteInfo]) -> str:
    """A list with one object per site."""
    return json.dumps([_as_object(site) for site in sites], indent=2)


def _as_object(site: SiteInfo) -> dict[str, Any]:
    parts = [
        {
            "part": part.part,
            "shape": list(part.shape),
            "dtype": _dtype_name(part),
            "bytes_per_sample": part.bytes_per_sample,
        }
        for part in site.parts
    ]
    return {"name": site.name, "type": site.type, "calls": site.n_calls, "parts": parts}


def to_lines(sites: Sequence[SiteInfo]) -> list[str]:
    """One line per module, indented, and one below it for each part.

    Numbered neighbours that look the same are one line, whose label is a pattern: `{0..31}`.
    """
    rows = list(_rows(_collapsed(_grow(sites)), "", 0))
    width = max((len(label) for label, _ in rows), default=0)
    lines: list[str] = []
    for label, (kind, n_calls, parts) in rows:
        calls = "" if n_calls is None else f"  {n_calls} call{'' if n_calls == 1 else 's'}"
        lines.append(f"{label:<{width}}  {kind}{calls}")
        indent = " " * (len(label) - len(label.lstrip())) + 2 * INDENT
        longest = max((len(part.part) for part in parts), default=0)
        lines += [f"{indent}{part.part:<{longest}}  {_describe(part)}" for part in parts]
    return lines


def at_most(sites: Sequence[SiteInfo], depth: int) -> list[SiteInfo]:
    """The sites whose names have no more segments than `depth`; the root has none."""
    return [site for site in sites if len(_segments(site.name)) <= depth]


def _segments(name: str) -> list[str]:
    return name.split(".") if name else []


def _grow(sites: Sequence[SiteInfo]) -> _Node:
    root = _Node("")
    nodes: dict[tuple[str, ...], _Node] = {(): root}
    for site in sites:
        path: tuple[str, ...] = ()
        for segment in _segments(site.name):
            parent, path = nodes[path], (*path, segment)
            if path not in nodes:
                nodes[path] = _Node(segment)
                parent.children.append(nodes[path])
        nodes[path].what = (site.type, site.n_calls, site.parts)
    return root


def _collapsed(node: _Node) -> _Node:
    children = [_collapsed(child) for child in node.children]
    return _Node(node.label, node.what, list(_merge(children)))


def _merge(nodes: Sequence[_Node]) -> Iterator[_Node]:
    start = 0
    for end in range(1, len(nodes) + 1):
        if end < len(nodes) and nodes[end] == nodes[start] and _follows(nodes[end - 1], nodes[end]):
            continue
        first, last = nodes[start], nodes[end - 1]
        label = first.label if first is last else f"{{{first.label}..{last.label}}}"
        yield _Node(label, first.what, first.children)
        start = end


def _follows(one: _Node, other: _Node) -> bool:
    are_numbers = one.label.isdecimal() and other.label.isdecimal()
    return are_numbers and int(other.label) == int(one.label) + 1


def _rows(node: _Node, prefix: str, level: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Labels and what they stand for. Segments that are no site join those below them."""
    name = prefix + node.label
    if node.what is not None:
        yield INDENT * level + (name or '""'), node.what
        prefix, level = "", level + 1
    else:
        prefix = f"{name}." if name else ""
    for child in node.children:
        yield from _rows(child, prefix, level)


def _describe(part: PartInfo) -> str:
    size = "" if part.bytes_per_sample is None else f"  {part.bytes_per_sample:,} B per sample"
    return f"{part.shape}  {_dtype_name(part)}{size}"


def _dtype_name(part: PartInfo) -> str:
    return str(part.dtype).removeprefix("torch.")
