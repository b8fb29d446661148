"""Result files: of which kind, the newest of a kind, and where its figures come from."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcap.bench.hardware import Machine
from fastcap.formatting import format_bytes

Content = Mapping[str, Any]


class FigureError(ValueError):
    """A result file or a document is not as it should be."""


@dataclass(frozen=True, slots=True)
class Result:
    """A result file, read."""

    path: Path
    content: Content

    @property
    def date(self) -> dt.datetime:
        """When it was measured; a date without a zone is UTC."""
        date = dt.datetime.fromisoformat(self.content["date"])
        return date if date.tzinfo else date.replace(tzinfo=dt.UTC)

    @property
    def machine(self) -> Machine:
        return Machine(**self.content["machine"])

    @property
    def is_busy(self) -> bool:
        """Whether other work ran beside it, as far as the file says."""
        return float(self.content.get("load", 0.0)) > self.machine.n_cores

    @property
    def stamp(self) -> str:
        """Changes with the name and with any figure."""
        text = json.dumps(self.content, sort_keys=True)
        return f"{self.path.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


Render = Callable[[Result], str]


@dataclass(frozen=True, slots=True)
class Kind:
    """What one benchmark writes.

    Attributes:
        title: What it measures, as a noun; also the heading of its section.
        name: What its files begin with.
        command: What measures it.
        block: All of it, for a document.
        brief: Its line in the summary; `None` to leave it out there.
        accepts: Whether a file of that name is the whole benchmark, on the CPU.
    """

    title: str
    name: str
    command: str
    block: Render
    brief: Render | None = None
    accepts: Callable[[Result], bool] = lambda result: True

    @property
    def not_measured(self) -> str:
        return f"Not measured yet: `{self.command}`."

    @property
    def heading(self) -> str:
        return self.title.lower().replace(" ", "-")


def newest(folder: Path, kind: Kind) -> Result | None:
    """The result with the latest date in it; `None` where there is none of this kind.

    Raises:
        FigureError: A file is no JSON object, or names no date, commit, machine or torch.
    """
    found = [read(path) for path in sorted(folder.glob(f"{kind.name}-*.json"))]
    return max(filter(kind.accepts, found), key=lambda result: result.date, default=None)


def read(path: Path) -> Result:
    """One file."""
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        why = f"{path} is not JSON ({error}). Measure it again, or remove it."
        raise FigureError(why) from None
    missing = [name for name in ("date", "commit", "machine", "torch") if name not in content]
    if missing:
        raise FigureError(
            f"{path} has no {', '.join(missing)}, so its figures could not be traced. Measure it "
            "again, or remove it."
        )
    return Result(path, content)


def credit(result: Result, to_results: str) -> str:
    """Where figures come from, in a line; `to_results` is the way from the page to the folder."""
    content, machine = result.content, result.machine
    place = [machine.cpu, f"{machine.n_cores} cores", format_bytes(machine.memory_bytes)]
    place += [machine.gpu] if machine.gpu else []
    versions = [f"torch {content['torch']}"]
    versions += [f"Python {content['python']}"] if "python" in content else []
    versions += [f"threads: {content['threads']}"] if "threads" in content else []
    parts = [
        f"{result.date:%Y-%m-%d}",
        f"{', '.join(place)} (huge pages: {machine.huge_pages})",
        ", ".join(versions),
        f"commit {(content['commit'] or 'unknown')[:12]}{_changes(content)}",
        *_load(result),
    ]
    return f"From [{result.path.name}]({to_results}{result.path.name}): {'; '.join(parts)}."


def _changes(content: Content) -> str:
    n_paths = len(content.get("changed_paths", ()))
    return f" with {n_paths} changed paths" if n_paths else ""


def _load(result: Result) -> list[str]:
    if "load" not in result.content:
        return []
    busy = ", so other work ran beside it" if result.is_busy else ""
    return [f"load average {result.content['load']:.2f}{busy}"]
