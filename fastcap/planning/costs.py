"""The cost model (docs/design/cost-model.md): what a run takes of each resource, in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fastcap.formatting import counted, format_bytes, format_secs
from fastcap.planning.machine import Machine

Into: TypeAlias = Literal["memory", "loop", "archive"]
"""Who receives what is captured: `extract_representations`, a loop over `stream`, or a disk."""

BoundName: TypeAlias = Literal["compute", "link", "consumer", "disk", "hooks"]

Secs: TypeAlias = dict[BoundName, float]

LAUNCH_BOUND = 0.95
"""Share of a pass that the host takes to launch it, above which the host is what sets its time."""


@dataclass(frozen=True, slots=True)
class Term:
    """One resource.

    Attributes:
        name: `compute`, `link`, `consumer`, `disk` or `hooks`.
        secs: The least the run takes of it; `None` if a rate is unknown.
        work: The amount and the rate, as text.
    """

    name: BoundName
    secs: float | None
    work: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A run, as the cost model sees it. Bytes are of the whole run unless said.

    Attributes:
        n_passes: Passes.
        n_calls: Captured calls of one pass.
        link_bytes: Bytes that leave the model's device.
        read_bytes: Bytes that packs read.
        result_bytes: Bytes delivered.
        disk_bytes: Bytes written to files.
        last_bytes: What is still under way when the last pass ends: at most a chunk.
        stall_bytes: What of one pass's largest record does not fit into staging.
        into: Who receives them.
        lends: Whether a loop is given slots instead of copies.
        is_direct: Whether the hook copies by itself, on a device with nothing to overlap.
        forward_secs: One pass without hooks; `None` where not known.
        launch_secs: The host's part of it.
    """

    n_passes: int
    n_calls: int
    link_bytes: int
    read_bytes: int
    result_bytes: int
    disk_bytes: int
    last_bytes: int
    stall_bytes: int
    into: Into
    lends: bool
    is_direct: bool
    forward_secs: float | None
    launch_secs: float | None

    @property
    def waits_for_launches(self) -> bool:
        """Whether the accelerator stands idle for most of a pass, so that packs cost it nothing."""
        if self.forward_secs is None or self.launch_secs is None:
            return False
        return self.launch_secs >= LAUNCH_BOUND * self.forward_secs


@dataclass(frozen=True, slots=True)
class Costs:
    """What a run takes.

    Attributes:
        terms: Resource by resource.
        secs: The whole run; `None` where a term is not known.
        at_least_secs: What the known terms alone take.
        bound: What sets the time, of what is known: the largest term, on a CPU model the largest of
            the thread's own unless the disk takes longer than all of these. `None` where none is
            known.
    """

    terms: tuple[Term, ...]
    secs: float | None
    at_least_secs: float
    bound: BoundName | None


def costs_of(load: Load, machine: Machine) -> Costs:
    """On an accelerator, resources work at the same time: the slowest is the run, and a drain.

    An archive is written straight out of slots. On a CPU model one thread does everything but
    writing to disk, hooks' copies included: the sum is the run.
    """
    terms = tuple(_terms(load, machine))
    known: Secs = {term.name: term.secs for term in terms if term.secs is not None}
    rivals, secs = known, max(known.values(), default=0.0)
    if load.is_direct:
        in_thread: Secs = {name: secs for name, secs in known.items() if name != "disk"}
        on_disk: Secs = {name: secs for name, secs in known.items() if name == "disk"}
        rivals = max(in_thread, on_disk, key=lambda terms: sum(terms.values()))
        secs = sum(rivals.values())
    else:
        secs += _drain_secs(load, machine)
    bound = max(rivals, key=rivals.__getitem__, default=None)
    return Costs(terms, secs if len(known) == len(terms) else None, secs, bound)


def _terms(load: Load, machine: Machine) -> Iterator[Term]:
    yield _compute(load, machine)
    if not load.is_direct:
        yield _moved("link", load.link_bytes, machine.link_bytes_per_sec, "")
    if load.into == "memory":
        rate = machine.fresh_bytes_per_sec
        yield _moved("consumer", load.result_bytes, rate, " into fresh memory")
    elif load.is_direct or (load.into == "loop" and not load.lends):
        rate = machine.warm_bytes_per_sec
        yield _moved("consumer", load.result_bytes, rate, " into memory used again")
    if load.into == "archive":
        yield _moved("disk", load.disk_bytes, machine.disk_bytes_per_sec, "")
    yield _hooks(load, machine)


def _compute(load: Load, machine: Machine) -> Term:
    """`t_forward + t_pack + t_stall`. On a CPU model there are no packs."""
    if load.forward_secs is None:
        return Term("compute", None, f"{counted(load.n_passes, 'pass')}; forward pass not measured")
    secs = load.n_passes * load.forward_secs
    work = f"{counted(load.n_passes, 'pass')} of {format_secs(load.forward_secs)}"
    if not load.is_direct and not load.waits_for_launches:
        packed_bytes, rate = load.read_bytes + load.link_bytes, machine.device_bytes_per_sec
        secs += load.n_passes * load.n_calls * (machine.pack_secs or 0.0)
        secs += packed_bytes / rate if rate else 0.0
        work += ", and packs" if rate else ", without packs (rate not known)"
        if load.stall_bytes and machine.link_bytes_per_sec:
            secs += load.n_passes * load.stall_bytes / machine.link_bytes_per_sec
            work += ", and stalls"
    return Term("compute", secs, work)


def _moved(name: BoundName, n_bytes: int, rate: float | None, where: str) -> Term:
    amount = f"{format_bytes(n_bytes)}{where}"
    if rate is None:
        return Term(name, None, f"{amount}; rate not known")
    return Term(name, n_bytes / rate, f"{amount} at {format_bytes(rate)}/s")


def _hooks(load: Load, machine: Machine) -> Term:
    n_calls = load.n_passes * load.n_calls
    if machine.hook_secs is None:
        return Term("hooks", None, f"{counted(n_calls, 'call')}; cost of one not known")
    # On the CPU the host's part of a pass is the pass, and `compute` has it. Where the accelerator
    # waits for it, hooks make the whole pass longer.
    per_pass = load.forward_secs if load.waits_for_launches else load.launch_secs
    launch_secs = 0.0 if load.is_direct else load.n_passes * (per_pass or 0.0)
    work = f"{counted(n_calls, 'call')} of {format_secs(machine.hook_secs)}"
    return Term(
        "hooks", launch_secs + n_calls * machine.hook_secs, work + ", launches" * bool(launch_secs)
    )


def _drain_secs(load: Load, machine: Machine) -> float:
    """The last chunk's copy and delivery, after the model has ended."""
    rates = [machine.link_bytes_per_sec]
    if load.into == "memory":
        rates.append(machine.fresh_bytes_per_sec)
    elif load.into == "archive":
        rates.append(machine.disk_bytes_per_sec)
    return sum(load.last_bytes / rate for rate in rates if rate)
