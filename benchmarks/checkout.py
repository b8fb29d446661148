"""Which code a figure measured."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"


@dataclass(frozen=True, slots=True)
class Checkout:
    """The code that was measured.

    Attributes:
        commit: Its full hash; `None` outside a git checkout.
        changes: Paths that differ from it, beside results.
    """

    commit: str | None
    changes: tuple[str, ...] = ()


def describe_checkout(root: Path = PROJECT) -> Checkout:
    """The commit of `root`, and what differs from it. Results may be new: they are no code."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Checkout(None)
    status = _git(root, "status", "--porcelain", "--", ".", f":(exclude){RESULTS}") or ""
    return Checkout(commit.strip(), tuple(line[3:] for line in status.splitlines()))


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git is outside any checkout
        return None
    return done.stdout if done.returncode == 0 else None
