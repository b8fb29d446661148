"""What the programs of this folder share: arguments, refusals, and what every result file names."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import PROJECT, Checkout, describe_checkout
from fastcap.bench.hardware import Machine, describe_machine
from fastcap.bench.timing import FEWEST_ROUNDS

CANNOT_START = 2


def plain_parser(
    name: str, description: str | None, out: Path | None = None
) -> argparse.ArgumentParser:
    """A parser of `--out` and `--commit`."""
    parser = argparse.ArgumentParser(f"python -m {name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=out, help="folder for the results")
    parser.add_argument("--commit", help="what is measured, where this is not a git checkout")
    return parser


def parser_of(
    name: str, description: str | None, rounds: int | None = None, out: Path | None = None
) -> argparse.ArgumentParser:
    """The same with `--allow-dirty` and, with a default of them, `--rounds`."""
    parser = plain_parser(name, description, out)
    if rounds is not None:
        shown = f"timed rounds (default {rounds})"
        parser.add_argument("--rounds", type=as_rounds, default=rounds, help=shown)
    parser.add_argument("--allow-dirty", action="store_true", help="measure a tree with changes")
    return parser


def as_rounds(text: str) -> int:
    """A number of rounds, on a command line."""
    n_rounds = int(text)
    if n_rounds < FEWEST_ROUNDS:
        raise argparse.ArgumentTypeError(f"an interval needs at least {FEWEST_ROUNDS} rounds")
    return n_rounds


@dataclass(frozen=True, slots=True)
class Origin:
    """Where figures come from: what every result file names.

    Attributes:
        machine: The hardware.
        checkout: The code.
        date: When, in UTC.
        load: The system's load average before the first measurement: what others ran beside it.
        n_threads: Threads that torch uses.
    """

    machine: Machine
    checkout: Checkout
    date: str
    load: float
    n_threads: int

    def fields(self) -> dict[str, Any]:
        """For a result file."""
        return {
            "date": self.date,
            "commit": self.checkout.commit,
            "changed_paths": list(self.checkout.changes),
            "machine": asdict(self.machine),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": self.n_threads,
            "load": self.load,
        }

    def path(self, folder: Path, kind: str) -> Path:
        """The result file, named after kind, day and machine."""
        return folder / f"{kind}-{self.date[:10]}-{self.machine.tag}.json"


def origin_of(commit: str | None, device: torch.device | str = "cpu") -> Origin:
    """The machine and the code; `commit` names it where this is no git checkout."""
    checkout = describe_checkout()
    return Origin(
        machine=describe_machine(device),
        checkout=checkout if checkout.commit is not None else Checkout(commit),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        load=os.getloadavg()[0],
        n_threads=torch.get_num_threads(),
    )


def begin(options: argparse.Namespace, device: torch.device | str = "cpu") -> Origin | None:
    """Where the figures of a program come from; `None` if it cannot start, with why on stderr."""
    origin = origin_of(options.commit, device)
    changes = origin.checkout.changes
    if options.out is not None and changes and not options.allow_dirty:
        refuse(
            f"The working tree differs from its commit in {len(changes)} paths "
            f"({', '.join(changes[:5])}), so the figures could not be traced to code. Commit "
            "first, or pass --allow-dirty."
        )
        return None
    return origin


def refuse(why: str) -> int:
    """Say why a program cannot start; the exit status for that."""
    sys.stderr.write(why + "\n")
    return CANNOT_START


def run(
    options: argparse.Namespace,
    kind: str,
    measure: Callable[[], Mapping[str, Any]],
    device: torch.device | str = "cpu",
    is_good: Callable[[Mapping[str, Any]], bool] = lambda figures: True,
) -> int:
    """A whole program: measure, print figures as the documents show them, write them if asked to.

    Args:
        options: What `parser_of` parsed.
        kind: What the result file begins with.
        measure: Gives the figures.
        device: What is measured.
        is_good: Whether the exit status is 0 and not 1.
    """
    origin = begin(options, device)
    if origin is None:
        return CANNOT_START
    figures = measure()
    finish(options, kind, origin, figures)
    return 0 if is_good(figures) else 1


def finish(
    options: argparse.Namespace, kind: str, origin: Origin, figures: Mapping[str, Any]
) -> None:
    """Print figures as the documents show them, and write them where that was asked for."""
    from benchmarks.figures.catalogue import shown
    from benchmarks.figures.results import Result

    content = json.loads(json.dumps({"kind": kind, **origin.fields(), **figures}))
    say(shown(kind, Result(Path(kind), content)))
    if options.out is not None:
        say(f"\nWritten to {write(options.out, kind, origin, figures)}")


def write(folder: Path, kind: str, origin: Origin, figures: Mapping[str, Any]) -> Path:
    """Write figures with their origin."""
    return write_json(origin.path(folder, kind), {"kind": kind, **origin.fields(), **figures})


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Replace the file as a whole: a run that is killed meanwhile leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return new.replace(path)


def run_child(
    *arguments: str, variables: Mapping[str, str] | None = None, limit_secs: float | None = None
) -> dict[str, Any]:
    """Run Python in a process of its own; the JSON object in the last line of what it printed.

    Raises:
        RuntimeError: The child failed or took too long; with the end of what it said.
    """
    try:
        child = subprocess.run(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env={**os.environ, **(variables or {})},
            capture_output=True,
            text=True,
            timeout=limit_secs,
            check=True,
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "")[-2000:]
        raise RuntimeError(f"{error}\n{said}") from error
    printed: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return printed


def say(text: str) -> None:
    """Print a line now, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_round(index: int, secs: Mapping[str, float]) -> None:
    """Print what a round took."""
    say(f"round {index + 1}: " + ", ".join(f"{way} {took:.2f} s" for way, took in secs.items()))
