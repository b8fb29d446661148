"""Random programs on real streams with sleeping kernels thrown in, and broken engines as controls.

    python -m benchmarks.gpu.soak [--secs 50]                            all engines, side by side
    python -m benchmarks.gpu.soak --engine sound --first-seed 1700       one of them, here
    python -m benchmarks.gpu.soak --dry-run                              a few programs on the CPU

A program drives a store, a stream or `extract_representations` beside the oracle, and every value
is compared (`tests/support/soak.py`). Before and after packs and copies the stream that they run on
sleeps for a random time, so that what is not ordered comes in another order. The sound engine must
never be wrong, in as many processes as there are cores for. An engine with one wait left out must
be seen to be wrong, or else the programs are blind to what it leaves out, and the report says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.gpu import command
from benchmarks.gpu.command import Program as Command
from benchmarks.gpu.report import FAILED, MEASURED, NONE, Figure, Range
from benchmarks.gpu.toolbox import Gpu
from benchmarks.programs import run_child, say
from fastcap.bench.hardware import describe_machine
from fastcap.devices.accelerator import AcceleratorDevice
from tests.support import soak as core
from tests.support.programs import Program
from tests.support.runs import RunProgram, StoreRun
from tests.support.soak import MUTANTS, Soak

LIMIT_SECS = 90.0
SECS = 50.0  # of programs, in each process
START_SECS = 35.0  # of a process: torch, a context on the GPU
SEEDS_APART = 100_000
SOUND = "sound"
RARE = {
    "fresh": "it takes packs on a second stream while the first is behind",
    "free": "it takes a chunk that is given back while nobody waits for its copy",
    "landing": "the wait at the end of a run hides it",
}
"""Engines that values need not show, and why; the simulated device looks at the order itself."""

MOST_CYCLES: tuple[tuple[float, float], ...] = (
    (0, 0),
    (0, 2e5),
    (2e5, 0),
    (2e5, 2e5),
    (0, 2e6),
    (2e6, 0),
)
"""How long packs and copies sleep at most: 2e6 cycles are about 1 ms, many times any of these."""


class Naps:
    """Sleeping kernels around packs, on the stream of the model, and copies, on theirs."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._draw = core.draw(0)
        self._pack_cycles, self._copy_cycles = MOST_CYCLES[0]

    def begin(self, seed: int) -> None:
        """Draw how long the program of a seed sleeps, the same each time."""
        self._draw = core.draw(seed)
        self._pack_cycles, self._copy_cycles = self._draw.choice(MOST_CYCLES)

    def _nap(self, most_cycles: float, stream: Any = None) -> None:
        if most_cycles and self._draw.random() < 0.5:
            self._gpu.nap(1 + int(self._draw.random() * most_cycles), stream)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Every device of fastcap sleeps in the block."""
        pack, copy = AcceleratorDevice.pack, AcceleratorDevice.copy

        def slow_pack(device: AcceleratorDevice, *args: Any) -> None:
            self._nap(self._pack_cycles)
            pack(device, *args)
            self._nap(self._pack_cycles)

        def slow_copy(
            device: AcceleratorDevice,
            staging: Any,
            target: Any,
            n_bytes: int,
            after: Any,
            then: Any,
            offset: int = 0,
        ) -> None:
            for event in after:
                device._copy_stream.wait_event(event)
            self._nap(self._copy_cycles, device._copy_stream)
            copy(device, staging, target, n_bytes, (), then, offset)
            self._nap(self._copy_cycles, device._copy_stream)

        with (
            mock.patch.object(AcceleratorDevice, "pack", slow_pack),
            mock.patch.object(AcceleratorDevice, "copy", slow_copy),
        ):
            yield


def play_engine(
    gpu: Gpu, engine: str, first_seed: int, secs: float, n_most: int = SEEDS_APART
) -> Soak:
    """Programs on one engine, from a seed on; a broken engine's until the first that is wrong.

    Args:
        gpu: Where.
        engine: `sound`, or a key of `MUTANTS`.
        first_seed: Of the first program.
        secs: How long.
        n_most: So many programs at most.
    """
    naps = Naps(gpu)
    with ExitStack() as stack:
        if engine != SOUND:  # before the naps, which stand in the place of what it changes
            stack.enter_context(MUTANTS[engine].applied())
        stack.enter_context(naps.installed())
        if not gpu.is_real:
            stack.enter_context(mock.patch.object(core, "play", _play_on_cpu))
        return core.soak(
            range(first_seed, first_seed + n_most),
            gpu.device.type,
            before=naps.begin,
            secs=secs,
            most_wrong=3 if engine == SOUND else 1,
        )


def _play_on_cpu(program: Program | RunProgram, place: str) -> None:
    """Without streams to switch between, for a dry run."""
    (StoreRun(program, None) if isinstance(program, Program) else program).run()


# Engines side by side, each in processes of its own


def play_in_child(engine: str, first_seed: int, secs: float, limit_secs: float) -> Soak:
    """One engine's programs in a fresh process.

    Raises:
        RuntimeError: It failed, or took much longer; with the end of what it said.
    """
    arguments = ("--engine", engine, "--first-seed", str(first_seed), "--secs", str(secs))
    return Soak(**run_child("-m", "benchmarks.gpu.soak", *arguments, limit_secs=limit_secs))


def everything(program: Command, secs: float) -> None:
    """The sound engine in several processes, every broken one in one, all at the same time."""
    totals = {engine: Soak() for engine in (SOUND, *MUTANTS)}
    for engine in totals:
        program.ask(title_of(engine))
    if program.is_dry:
        for engine, total in totals.items():
            note(program, engine, total, play_engine(program.gpu, engine, 0, secs, n_most=4))
        return
    n_cores = describe_machine("cpu").n_cores
    n_sound = max(1, n_cores - len(MUTANTS))
    runs = [(SOUND, i * SEEDS_APART) for i in range(n_sound)] + [(engine, 0) for engine in MUTANTS]
    limit_secs = max(1.0, len(runs) / n_cores) * (secs + START_SECS)
    with ThreadPoolExecutor(len(runs)) as pool:
        engines = {pool.submit(play_in_child, *run, secs, limit_secs): run[0] for run in runs}
        for done in as_completed(engines):
            engine = engines[done]
            try:
                note(program, engine, totals[engine], done.result())
            except RuntimeError as error:
                entry = program.ask(title_of(engine))
                entry.status, entry.reason = FAILED, str(error)[-300:]
                program.write()


def title_of(engine: str) -> str:
    if engine == SOUND:
        return "random programs on the sound engine"
    return f"random programs on a broken engine: {MUTANTS[engine].drops}"


def note(program: Command, engine: str, total: Soak, found: Soak) -> None:
    """Add what one process found to its engine's entry."""
    total.programs += found.programs
    total.secs += found.secs
    total.wrong.update(found.wrong)
    entry = program.ask(title_of(engine))
    entry.secs = total.secs
    if entry.status != FAILED:
        entry.status, entry.reason = MEASURED, ""
    expected = NONE if engine == SOUND else None if engine in RARE else Range(1, 1)
    entry.figures = [
        Figure("programs", total.programs, "programs"),
        Figure("wrong", len(total.wrong), "programs", expected),
    ]
    seeds = "; ".join(f"seed {seed}: {what}" for seed, what in total.wrong.items())
    if engine == SOUND and total.wrong:
        entry.status, entry.reason = FAILED, seeds
    elif engine != SOUND and not total.wrong and not program.is_dry:
        why = RARE.get(engine, "the programs are blind to it")
        entry.reason = f"not seen: {why}"
        if engine not in RARE:
            program.notes.append(f"The engine {engine!r} was not seen to be wrong.")
    program.say(f"{engine}: {len(total.wrong)} of {total.programs} wrong; {seeds[:200]}")
    program.write()


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu.soak", __doc__, LIMIT_SECS)
    parser.add_argument("--secs", type=float, default=SECS, help="of programs, in each process")
    parser.add_argument("--engine", choices=[SOUND, *MUTANTS], help="one engine, in this process")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.engine is None:
        return command.run("soak", options, partial(everything, secs=options.secs))
    gpu = command.open_gpu(options.dry_run)
    with gpu.running():
        found = play_engine(gpu, options.engine, options.first_seed, options.secs)
    say(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
