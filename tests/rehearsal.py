"""The CUDA path without a GPU, on the stand-in runtime: `make gpu-rehearsal`.

    python -m tests.rehearsal [--programs 2000] [--out FOLDER]

Runs every test marked `gpu`, those that need two devices, a soak of random programs and, as its
positive controls, a hunt of every mutant; with `--out`, writes down what it saw. Nothing in that
file is a GPU's: no time in it says anything about one (`tests/standin_cuda/README.md`).

Exit status: 0, or 1 when a test or a sound program fails, or a mutant is seen by nobody.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.programs import Origin, origin_of, write_json

PAGE = Path(__file__).parent.parent / "docs/exactness.md"
LABEL = "stand-in runtime: torch's CUDA host code over host memory. No GPU was used."
N_PROCESSES = min(4, os.cpu_count() or 1)
ON_STANDIN = (sys.executable, "-m", "tests.standin_cuda", "-m")
NEED_TWO_DEVICES = ("tests/test_standin_cuda.py",)


@dataclass
class PytestRun:
    """One run of pytest.

    Attributes:
        problems: The tests that failed, with the first line of why.
    """

    passed: int
    skipped: int
    problems: dict[str, str]
    secs: float


@dataclass
class Rehearsal:
    """What was run and seen."""

    tests: PytestRun
    two_devices: PytestRun
    soaks: list[dict[str, Any]] = field(default_factory=list)
    hunts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> dict[str, str]:
        return {seed: what for soak in self.soaks for seed, what in soak["wrong"].items()}

    @property
    def unexplained(self) -> list[str]:
        """Mutants that neither this nor any judge of the simulated device sees, with no reason."""
        return [
            hunt["name"] for hunt in self.hunts if not (hunt["seen_by"] or hunt.get("elsewhere"))
        ]

    @property
    def is_good(self) -> bool:
        problems = (self.tests.problems, self.two_devices.problems, self.wrong, self.unexplained)
        return not any(problems)

    def figures(self) -> dict[str, Any]:
        return {
            "gpu_tests": dataclasses.asdict(self.tests),
            "two_device_tests": dataclasses.asdict(self.two_devices),
            "programs": sum(soak["programs"] for soak in self.soaks),
            "wrong_programs": self.wrong,
            "mutants": len(self.hunts),
            "mutants_seen": sum(bool(hunt["seen_by"]) for hunt in self.hunts),
            "hunts": self.hunts,
        }

    def table(self) -> str:
        """The figures, for people."""
        figures = self.figures()
        lines = [LABEL]
        for name, tests in (("GPU tests", self.tests), ("on two devices", self.two_devices)):
            failed = len(tests.problems)
            lines.append(f"{name:<16} {tests.passed} passed, {failed} failed, {tests.secs:.0f} s")
            lines += [f"  FAILED {test}: {why}" for test, why in tests.problems.items()]
        lines.append(f"soak             {figures['programs']} programs, {len(self.wrong)} wrong")
        lines += [f"  WRONG seed {seed}: {what}" for seed, what in self.wrong.items()]
        lines.append(f"mutants          {figures['mutants_seen']} of {len(self.hunts)} seen")
        unseen = [hunt for hunt in self.hunts if not hunt["seen_by"]]
        for hunt in unseen:
            where = hunt.get("elsewhere") or "NOBODY"
            lines.append(f"  not seen: {hunt['drops']}; elsewhere: {where}")
        return "\n".join(lines) + "\n"


def run_tests(*arguments: str, n_devices: int = 1) -> PytestRun:
    """Pytest on the stand-in."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        # What ends a stuck test knows nothing of kernels in Python on a loaded machine.
        options = ["-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=900"]
        options += ["-n", str(N_PROCESSES), f"--junitxml={report}"]
        environment = {**os.environ, "STANDIN_CUDA_DEVICES": str(n_devices)}
        subprocess.run([*ON_STANDIN, "pytest", *options, *arguments], env=environment, check=False)
        secs = time.perf_counter() - started
        if not report.exists():
            return PytestRun(0, 0, {"pytest": "it ended without a report"}, secs)
        return read_report(report, secs)


def read_report(report: Path, secs: float) -> PytestRun:
    """Counts and failures from JUnit's XML."""
    problems, n_skipped, n_tests = {}, 0, 0
    for case in ET.parse(report).iter("testcase"):
        n_tests += 1
        n_skipped += case.find("skipped") is not None
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                name = f"{case.get('classname')}::{case.get('name')}"
                problems[name] = (found.get("message") or kind).splitlines()[0][:200]
    return PytestRun(n_tests - n_skipped - len(problems), n_skipped, problems, round(secs, 1))


def play(commands: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Run soaking commands side by side; what they printed, in order."""
    started = [
        subprocess.Popen(
            [*ON_STANDIN, "tests.standin_cuda.soaking", *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "STANDIN_CUDA_LOG": "0"},
        )
        for command in commands
    ]
    found: list[dict[str, Any]] = []
    for process in started:
        output, _ = process.communicate()
        found += [json.loads(line) for line in output.splitlines()]
        if process.returncode not in (0, 1):
            raise SystemExit(f"a soak ended with status {process.returncode}")
    return found


def soak(first_seed: int, n_programs: int) -> list[dict[str, Any]]:
    each = -(-n_programs // N_PROCESSES)
    firsts = range(first_seed, first_seed + n_programs, each)
    return play([["--first-seed", str(first), "--programs", str(each)] for first in firsts])


def hunt() -> list[dict[str, Any]]:
    """Every mutant; where the stand-in does not see one, who does."""
    found = play([["--mutants", "--part", f"{i}/{N_PROCESSES}"] for i in range(N_PROCESSES)])
    judges = seen_elsewhere(PAGE.read_text())
    return [
        result | ({} if result["seen_by"] else {"elsewhere": judges.get(result["drops"], "")})
        for result in sorted(found, key=lambda result: str(result["rule"]))
    ]


def seen_elsewhere(page: str) -> dict[str, str]:
    """By what is left out, who sees it on the simulated device: the table that `make mutants`
    writes.
    """
    row = r"^\| (?:R\d+|seam) \| (.+?)(?: \(M\d+\))? \| (.+?) \| \S+ \|$"
    return {
        drops: seen if seen.startswith("survives") else f"simulated device: {seen}"
        for drops, seen in re.findall(row, page, re.MULTILINE)
    }


def write(folder: Path, rehearsal: Rehearsal, origin: Origin, secs: float) -> Path:
    """One JSON file, named after the day."""
    path = folder / f"rehearsal-{origin.date[:10]}.json"
    content = {
        "label": LABEL,
        **origin.fields(),
        **rehearsal.figures(),
        "secs": round(secs, 1),
    }
    return write_json(path, content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.rehearsal", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", type=int, default=2000, help="sound ones (default 2000)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for what was seen")
    options = parser.parse_args(arguments)
    if torch.version.cuda is None:
        sys.stderr.write("This torch has no CUDA in it. Run: make gpu-rehearsal\n")
        return 2
    origin, started = origin_of(None), time.perf_counter()
    rehearsal = Rehearsal(
        run_tests("-m", "gpu"),
        run_tests("-m", "gpu", *NEED_TWO_DEVICES, n_devices=2),
        soak(options.first_seed, options.programs),
        hunt(),
    )
    secs = time.perf_counter() - started
    sys.stdout.write(f"{rehearsal.table()}{secs:.0f} s\n")
    if options.out:
        sys.stdout.write(f"written to {write(options.out, rehearsal, origin, secs)}\n")
    return 0 if rehearsal.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
