"""What the programs of this folder share: arguments, refusals, and where figures come from."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import Checkout, describe_checkout
from fastcap.bench.hardware import Machine, describe_machine
from fastcap.bench.timing import FEWEST_ROUNDS
from fastcap.formatting import format_bytes

CANNOT_START = 2


def parser_of(
    name: str, description: str | None, rounds: int, out: Path | None = None
) -> argparse.ArgumentParser:
    """A parser of `--rounds`, `--out`, `--allow-dirty` and `--commit`.

    Args:
        name: The module, as in `python -m benchmarks.run`.
        description: Its docstring.
        rounds: How many there are by default.
        out: Where results go by default; `None` to write none.
    """
    parser = argparse.ArgumentParser(f"python -m {name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    help_of_rounds = f"timed rounds (default {rounds})"
    parser.add_argument("--rounds", type=as_rounds, default=rounds, help=help_of_rounds)
    parser.add_argument("--out", type=Path, default=out, help="folder for the results")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="measure a working tree with changes"
    )
    parser.add_argument("--commit", help="what is measured, where this is not a git checkout")
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

    @property
    def day(self) -> str:
        return self.date[:10]

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

    def card_rows(self) -> Iterator[tuple[str, str]]:
        """Names and texts, for a reader."""
        machine, checkout = self.machine, self.checkout
        memory = f"{format_bytes(machine.memory_bytes)}, huge pages: {machine.huge_pages}"
        yield "machine", f"{machine.cpu}, {machine.n_cores} cores, {memory}"
        yield "load", f"{self.load:.2f} before the start"
        if machine.gpu is not None:
            yield "gpu", f"{machine.gpu}, {format_bytes(machine.gpu_memory_bytes or 0)}"
        versions = f"{torch.__version__}, Python {platform.python_version()}"
        yield "torch", f"{versions}, threads: {self.n_threads}"
        changes = f", with {len(checkout.changes)} changed paths" if checkout.changes else ""
        yield "commit", f"{checkout.commit or 'unknown: not a git checkout'}{changes}"


def begin(options: argparse.Namespace, device: torch.device | str = "cpu") -> Origin | None:
    """Where the figures of a program come from; `None` if it cannot start, with why on stderr."""
    checkout = describe_checkout()
    if checkout.commit is None:
        checkout = Checkout(options.commit)
    if options.out is not None and checkout.changes and not options.allow_dirty:
        shown = ", ".join(checkout.changes[:5])
        refuse(
            f"The working tree differs from its commit in {len(checkout.changes)} paths ({shown}), "
            "so the figures could not be traced to code. Commit first, or pass --allow-dirty."
        )
        return None
    return Origin(
        machine=describe_machine(device),
        checkout=checkout,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        load=os.getloadavg()[0],
        n_threads=torch.get_num_threads(),
    )


def refuse(why: str) -> int:
    """Say why a program cannot start; the exit status for that."""
    sys.stderr.write(why + "\n")
    return CANNOT_START


def write(folder: Path, name: str, origin: Origin, figures: Mapping[str, Any]) -> Path:
    """Write figures with their origin, in a file named after both."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{origin.day}-{origin.machine.tag}.json"
    path.write_text(json.dumps({**origin.fields(), **figures}, indent=1) + "\n")
    return path


def say(text: str) -> None:
    """Print a line now, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_round(index: int, secs: Mapping[str, float]) -> None:
    """Print what a round took."""
    say(f"round {index + 1}: " + ", ".join(f"{way} {took:.2f} s" for way, took in secs.items()))
