"""Ctrl-C at one line of fastcap, and what must hold afterwards.

Between any two lines of the package, Python may raise KeyboardInterrupt. A program is played once
for each of them. Afterwards, ending the store or stream works, no hook is on the model, nothing
hangs, what was captured before is what it was or a clear error, and the same run again equals the
oracle.
"""

from __future__ import annotations

import ast
import dis
import functools
import gc
import random
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

import fastcap
from fastcap import devices, reference
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.errors import FastcapError
from fastcap.spec import make_selection
from tests.support.judging import clear_up, warm_up
from tests.support.killing import time_limit
from tests.support.models import hooks_on, training_flags
from tests.support.runs import must_equal, running_on

MUTANT = "<mutant of "  # as tests.support.mutation names them
PACKAGE = str(Path(fastcap.__file__).parent)
NOT_CAPTURING = ("reference.py", "devices/simulated/")
LONGEST_SECS = 20.0  # a program takes a hundredth of that
PATIENCE = 20_000  # calls into a device
KINDS = ("store", "stream", "memory", "archive")
PLACES = ("cpu", "early", "late", "random")


class Interrupter:
    """Raises KeyboardInterrupt in this thread before one of the package's lines runs.

    Where Python takes no interrupt there is no such line: a `with` that its block comes back to,
    and the first of an `except` or `finally`.

    Args:
        at: Before which line, counted from 1; `None` before none.

    Attributes:
        lines: Those that were run, in words, and the one that was not.
        where: That one; empty where none was interrupted.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.lines: list[str] = []
        self.where = ""

    def __enter__(self) -> Self:
        sys.settrace(self._call)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if _is_ours(frame.f_code.co_filename) else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        if (
            event != "line"
            or frame.f_lineno in _first_of_handlers(code.co_filename)
            or frame.f_lasti in _ends_of_with(code)
        ):
            return self._line
        name = code.co_filename.removeprefix(PACKAGE)
        self.lines.append(f"fastcap{name}:{frame.f_lineno} in {code.co_name}")
        if len(self.lines) == self.at:
            sys.settrace(None)
            self.where = self.lines[-1]
            for _ in range(2):  # the first may only be noted
                signal.raise_signal(signal.SIGINT)
        return self._line


@functools.cache
def _is_ours(file_name: str) -> bool:
    inside = file_name.removeprefix(PACKAGE + "/")
    if file_name.startswith(MUTANT):
        return True
    return inside != file_name and not inside.startswith(NOT_CAPTURING)


@functools.cache
def _first_of_handlers(file_name: str) -> frozenset[int]:
    """The lines that exceptions and ends of `try` blocks come to without a call before them."""
    lines: set[int] = set()
    if file_name.startswith(MUTANT):
        return frozenset()
    for node in ast.walk(ast.parse(Path(file_name).read_text())):
        if isinstance(node, ast.Try):
            lines.update(handler.lineno for handler in node.handlers)
            for body in [node.finalbody, *(handler.body for handler in node.handlers)]:
                while body:
                    lines.add(body[0].lineno)
                    body = body[0].body if isinstance(body[0], ast.Try) else []
    return frozenset(lines)


@functools.cache
def _ends_of_with(code: CodeType) -> frozenset[int]:
    """Where `__exit__` is about to be called with three times `None`."""
    found = list(dis.get_instructions(code))
    ends = set()
    for number, three in enumerate(zip(found, found[1:], found[2:], strict=False)):
        if all(each.opname == "LOAD_CONST" and each.argval is None for each in three):
            while found[number].starts_line is None and found[number - 1].opname in ("SWAP", "NOP"):
                number -= 1
            ends.add(found[number].offset)
    return frozenset(ends)


class Scaling(nn.Module):
    """Each site gives a multiple of the input, which is overwritten after it was given."""

    def __init__(self, n_sites: int) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(nn.Identity() for _ in range(n_sites))

    def forward(self, input_ids: Tensor) -> Tensor:
        for number, leaf in enumerate(self.leaves, 1):
            leaf(input_ids * number).zero_()
        return torch.zeros(1)


def call(model: nn.Module, batch: Any) -> Any:
    return model(batch["input_ids"])


@dataclass(frozen=True)
class Program:
    """What is captured, where, and with which memory."""

    kind: str
    place: str
    seed: int
    n_sites: int
    n_samples: int
    batch_size: int
    width: int
    positions: Any
    zero_copy: bool
    calls: str
    is_pinned: bool
    prefetch: int
    staging_bytes: int
    pinned_bytes: int

    @property
    def sites(self) -> list[str]:
        return [f"leaves.{i}" for i in range(self.n_sites)]

    @property
    def options(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "seq_dim": 1,
            "staging_bytes": self.staging_bytes,
            "pinned_bytes": self.pinned_bytes,
        }

    def samples(self, factor: float = 1.0) -> list[dict[str, Tensor]]:
        each = torch.arange(1, self.width + 1, dtype=torch.float32)
        return [{"input_ids": each * (100 * factor + i)} for i in range(self.n_samples)]

    def batches(self, factor: float = 1.0) -> list[dict[str, Tensor]]:
        samples, size = self.samples(factor), self.batch_size
        parts = [samples[i : i + size] for i in range(0, self.n_samples, size)]
        return [{"input_ids": torch.stack([s["input_ids"] for s in part])} for part in parts]

    def expected(self, factor: float = 1.0) -> list[dict[str, Tensor]]:
        """By batch, from the oracle."""
        selection = make_selection(positions=self.positions, seq_dim=1)
        batches = self.batches(factor)
        return list(reference.stream(self.model(), batches, self.sites, call, selection))

    def rows(self) -> dict[str, Tensor]:
        found = self.expected()
        return {site: torch.cat([each[site] for each in found]) for site in self.sites}

    def model(self) -> Scaling:
        return Scaling(self.n_sites)

    def device(self) -> SimulatedDevice | None:
        if self.place == "cpu":
            return None
        return SimulatedDevice(Schedule(self.place, self.seed), patience=PATIENCE)


def draw_program(seed: int) -> Program:
    """Every kind on every place in turn, with memory for little more than one value."""
    draw = random.Random(seed)
    kind, place = KINDS[seed % 4], PLACES[seed // 4 % 4]
    return Program(
        kind=kind,
        place=place,
        seed=seed,
        n_sites=draw.choice((1, 2)),
        n_samples=draw.choice((2, 3)),
        batch_size=draw.choice((1, 2)),
        width=draw.choice((3, 20, 60, 100)),
        positions=draw.choice((None, None, None, -1)),
        zero_copy=draw.random() < 0.6,
        calls=draw.choice(("last", "all")),
        is_pinned=draw.random() < 0.5,
        prefetch=draw.choice((0, 1)),
        staging_bytes=draw.choice((256, 512, 1024)),
        pinned_bytes=draw.choice((256, 512, 768)),
    )


class Session:
    """One run of a program, which may be interrupted, and what must hold after it.

    Args:
        device: Where its values are.
        folder: For archives.
    """

    def __init__(self, program: Program, device: SimulatedDevice | None, folder: Path) -> None:
        self.program = program
        self.device = device
        self.folder = folder
        self.model = program.model()
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self.expected = program.expected()

    def act(self) -> None:
        """What is interrupted."""
        raise NotImplementedError

    def end(self) -> None:
        """What its user does after an interrupt, if anything."""

    def again(self) -> None:
        """The same once more, which must equal the oracle."""
        self.act()

    def check_memory(self) -> None:
        """What was taken on the device has been given back."""
        if self.device is not None:
            counters = self.device.counters
            assert not counters.staging_bytes, f"{counters.staging_bytes} bytes of staging left"
            assert not counters.pinned_bytes, f"{counters.pinned_bytes} bytes of slots left"

    def hold(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """Found values equal the oracle's, now and when everything is over."""
        must_equal(expected, found)
        self.seen.append((expected, found))


class StoreSession(Session):
    def __init__(self, program: Program, device: SimulatedDevice | None, folder: Path) -> None:
        super().__init__(program, device, folder)
        self.store: fastcap.ActivationStore | None = None
        self.later = program.expected(7.0)

    def act(self) -> None:
        program = self.program
        self.store = store = fastcap.ActivationStore(
            self.model,
            program.sites,
            zero_copy=program.zero_copy,
            calls=program.calls,
            **program.options,
        )
        store.enable()
        for number, (batch, expected) in enumerate(
            zip(program.batches(), self.expected, strict=True)
        ):
            call(self.model, batch)
            if number != 1:
                self.hold(expected, store.activations)
            if number == 2:
                store.clear()
        store.disable()

    def end(self) -> None:
        store = self.store
        if store is None:
            return
        self._look(store)
        if store.enabled:  # the next pass, in the store as it is
            [batch, *_], [expected, *_] = self.program.batches(7.0), self.later
            call(self.model, batch)
            self._look(store, expected)
        store.disable()
        assert not store.enabled
        assert store._hooks == []
        assert not hooks_on(self.model), "hooks after disable()"
        self.check_memory()
        self._look(store)
        store.enable()  # another time, the same store
        for batch, expected in zip(self.program.batches(7.0), self.later, strict=True):
            store.clear()
            call(self.model, batch)
            self.hold(expected, store.activations)
            assert all(len(store.calls(site)) == 1 for site in expected)
        store.disable()

    def _look(
        self, store: fastcap.ActivationStore, latest: dict[str, Tensor] | None = None
    ) -> None:
        """Every value is one that was captured, or an error that says what to do."""
        known = [*self.expected, *self.later] if latest is None else [latest]
        for site in list(store):
            with suppress(FastcapError):
                found = store.get(site)
                matches = [each for each in known if found is not None and found.equal(each[site])]
                assert matches, f"{site}: {found}"
                assert found is not None
                self.hold({site: matches[0][site]}, {site: found})


class StreamSession(Session):
    def act(self) -> None:
        with self._open() as records:
            for expected, found in zip(self.expected, records, strict=True):
                self.hold(expected, dict(found))

    def _open(self) -> fastcap.Stream:
        program = self.program
        return fastcap.stream(
            self.model,
            program.batches(),
            program.sites,
            zero_copy=program.zero_copy,
            prefetch=program.prefetch,
            **program.options,
        )


class MemorySession(Session):
    def act(self) -> None:
        program, out = self.program, None
        if program.is_pinned:
            out = {site: torch.full_like(rows, -1.0) for site, rows in program.rows().items()}
            device = devices.open_device(torch.device("cpu"))
            if isinstance(device, SimulatedDevice):
                for rows in out.values():
                    device.pin(rows)
        found = fastcap.extract_representations(
            self.model,
            program.samples(),
            program.sites,
            batch_size=program.batch_size,
            out=out,
            **program.options,
        )
        self.hold(program.rows(), found)


class ArchiveSession(Session):
    def act(self) -> None:
        program = self.program
        found = fastcap.extract(
            self.model,
            program.samples(),
            program.sites,
            self.folder,
            batch_size=program.batch_size,
            group_bytes=1 if program.is_pinned else None,
            **program.options,
        )
        values = {site: torch.stack(list(found[site])) for site in program.sites}
        must_equal(program.rows(), values)


SESSIONS: dict[str, type[Session]] = {
    "store": StoreSession,
    "stream": StreamSession,
    "memory": MemorySession,
    "archive": ArchiveSession,
}


@dataclass(frozen=True)
class Finding:
    """What went wrong after an interrupt, and where that came."""

    seed: int
    at: int
    where: str
    what: str

    def report(self) -> str:
        return f"program {self.seed}, line {self.at} ({self.where}): {self.what}"


@dataclass
class Tally:
    """What interrupts of some programs came to.

    Attributes:
        n_swallowed: Those that came in a finalizer, where Python prints them and goes on.
    """

    n_programs: int = 0
    n_interrupts: int = 0
    n_swallowed: int = 0
    places: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.n_programs += other.n_programs
        self.n_interrupts += other.n_interrupts
        self.n_swallowed += other.n_swallowed
        self.places |= other.places
        self.findings += other.findings


def lines_of(seed: int) -> list[str]:
    """The lines of the package that a program runs, which may vary a little with threads."""
    warm_up()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(2):  # what is made once per process is made in the first
        whole, what = _play(draw_program(seed), None)
        assert not what, f"program {seed}, not interrupted: {what}"
    return whole.lines


def play(seed: int, at: int, tally: Tally) -> None:
    """Interrupt a program before one of its lines, and see what is left."""
    interrupter, what = _play(draw_program(seed), at, tally)
    tally.n_interrupts += bool(interrupter.where)
    tally.places.add(interrupter.where)
    if what:
        tally.findings.append(Finding(seed, at, interrupter.where, what))


def _play(program: Program, at: int | None, tally: Tally | None = None) -> tuple[Interrupter, str]:
    interrupter = Interrupter(at)
    device = program.device()
    before = [signal.getsignal(number) for number in _SIGNALS]
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            running_on(device),
            time_limit(LONGEST_SECS),
            _swallowed() as swallowed,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            session = SESSIONS[program.kind](program, device, Path(folder) / "acts")
            flags = training_flags(session.model)
            was_raised = _interrupted(session.act, interrupter)
            assert was_raised or not interrupter.where or swallowed, "the interrupt is gone"
            if tally is not None:
                tally.n_swallowed += len(swallowed)
            gc.collect()
            if program.kind != "store":
                assert not hooks_on(session.model), "hooks after the end"
            assert training_flags(session.model) == flags, "the model's mode is another one"
            assert [signal.getsignal(number) for number in _SIGNALS] == before, "signal handlers"
            session.end()
            session.again()
            for expected, found in session.seen:
                must_equal(expected, found)
            assert not hooks_on(session.model), "hooks at the end"
            session.check_memory()
        if device is not None:
            assert not device.judge.violations, device.judge.violations[0]
    except Exception as error:  # noqa: BLE001 - any way to fail is a finding
        clear_up()
        return interrupter, f"{type(error).__name__}: {error}"
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
    return interrupter, ""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _interrupted(act: Callable[[], None], interrupter: Interrupter) -> bool:
    try:
        with interrupter:
            act()
    except KeyboardInterrupt:
        return True
    return False


@contextmanager
def _swallowed() -> Iterator[list[object]]:
    """Interrupts that Python could only print, since they came in a finalizer."""
    found: list[object] = []
    before = sys.unraisablehook

    def note(unraisable: Any) -> None:
        if unraisable.exc_type is KeyboardInterrupt:
            found.append(unraisable.object)
        else:
            before(unraisable)

    sys.unraisablehook = note
    try:
        yield found
    finally:
        sys.unraisablehook = before
