"""Random programs on a real torch device, and the broken engines that they have to see.

The core that the soak on a GPU and the rehearsal on the stand-in runtime share. How the device's
streams are disturbed (sleeping kernels there, a seeded schedule here) is the caller's, who is asked
before every program:

    result = soak(range(500), "cuda", before=lambda seed: disturb(seed), secs=60)
    with MUTANTS["hold"].applied():
        assert soak(range(500), "cuda", before=..., most_wrong=1).wrong
"""

from __future__ import annotations

import gc
import random
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fastcap.engine import close_orphans
from fastcap.reference import ReferenceStore
from fastcap.spec import Selection, Site
from tests.support.mutants import MUTANTS as TABLE
from tests.support.mutants import PINNED_OUT, POOL, STAGED, Mutant, deletions
from tests.support.mutation import Change
from tests.support.programs import Program
from tests.support.runs import RunProgram, StoreRun, draw_any
from tests.support.scripted import ScriptedModel, World

ACCELERATOR = "fastcap.devices.accelerator:AcceleratorDevice"
THREADED = "fastcap.devices.threaded:ThreadedDevice"


def _mutant(rule: str, drops: str, target: str, old: str, new: str = "pass") -> Mutant:
    return Mutant(rule, drops, (Change(target, old, new),))


MUTANTS: dict[str, Mutant] = {
    "copy": _mutant(
        "R3",
        "the copy does not wait for the packs",
        f"{STAGED}:StagedTransfer._copy_to_slot",
        "after=chunk.record_packed(),",
        "after=(),",
    ),
    "hold": _mutant(
        "R3",
        "staging is rewritten without waiting for its copy",
        f"{POOL}:Chunk.open_to",
        "self._device.wait_event(compute_stream, self.copied)",
    ),
    "wait": _mutant(
        "R5",
        "the host reads a slot without its event",
        f"{STAGED}:StagedTransfer._read_piece",
        "self._device.synchronize(home.landed)",
    ),
    "worker": _mutant(
        "R5",
        "a host worker reads a slot without its event",
        f"{THREADED}._read_after",
        "self._block_until(after)",
    ),
    "straight": _mutant(
        "R3",
        "a copy straight to its rows does not wait for the packs",
        f"{PINNED_OUT}:copy_to_rows",
        "after = chunk.record_packed()",
        "after = []",
    ),
    "end": _mutant(
        "R12",
        "a run ends while a copy to the caller's rows is under way",
        f"{PINNED_OUT}:wait_for_copies",
        "device.synchronize(event)",
    ),
    "stream": _mutant(
        "R1",
        "the device packs on the copy stream",
        f"{ACCELERATOR}.pack",
        "staging.view(dtype, offset, value.shape).copy_(value, True)",
        "\n    with self._can.use_stream(self._copy_stream):"
        "\n        staging.view(dtype, offset, value.shape).copy_(value, True)",
    ),
    "all streams": _mutant(
        "R2",
        "a flush marks one of the streams that packed",
        f"{POOL}:Chunk.record_packed",
        "in self.streams.items():",
        "in list(self.streams.items())[:1]:",
    ),
    "fresh": _mutant(
        "R3",
        "fresh staging is used on a stream that knows nothing of its allocation",
        f"{POOL}:Chunk.__init__",
        "device.record(self.copied, device.current_stream())",
    ),
    "free": _mutant(
        "R3",
        "staging is given back before its last copy has read it",
        f"{ACCELERATOR}.release",
        "self._lasting_stream.wait_event(event)",
    ),
    "landing": _mutant(
        "R5",
        "transfer.pinned_out:Landing.wait synchronize (call 0)",
        f"{PINNED_OUT}:Landing.wait",
        "self._device.synchronize(self._event)",
    ),
}
"""Engines with one wait left out, by a short name. What they drop is in the words of the table in
docs/exactness.md, which says what the simulated device's judges see of each.
"""


def all_mutants() -> dict[str, Mutant]:
    """Those above, and every one of the simulated device's that also breaks a real one: the rest
    of `tests/support/mutants.py` that needs no situation of its own, and every deleted call into
    the device.
    """
    found = dict(MUTANTS)
    known = {mutant.drops for mutant in found.values()}
    for mutant in (*TABLE, *deletions()):
        if mutant.scenario is None and mutant.drops not in known and not _is_simulated(mutant):
            found[f"{mutant.rule}: {mutant.drops}"] = mutant
    return found


def _is_simulated(mutant: Mutant) -> bool:
    return any(change.target.startswith("fastcap.devices.simulated") for change in mutant.changes)


def play(program: Program | RunProgram, place: str = "cuda") -> None:
    """One program beside the oracle, with the model on a torch device.

    Raises:
        AssertionError: A value differed from the oracle's, or changed afterwards.
    """
    if isinstance(program, RunProgram):
        replace(program, place=place).run()
        torch.accelerator.synchronize(place)
        return
    device = torch.device(place)
    model = ScriptedModel(device)
    run = SoakRun(program, model)
    streams = Streams(device)
    model.world = World(run.get_and_compare, streams.switch, streams.join, run.collect)
    try:
        run.run()
    finally:
        streams.close()


class LateOracle(ReferenceStore):
    """The oracle with its copies to the host put off: its hook clones on the device instead.

    A copy to the host in a hook waits for the model's stream, and so for the pack that was just
    queued there: a missing wait of the engine's would have nothing to be too early for.
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[str], selection: Selection | None = None
    ) -> None:
        super().__init__(model, layers, selection)
        self._late: list[tuple[Site, Tensor]] = []

    def _keep(self, site: Site, value: Tensor | None) -> None:
        if value is not None:
            with torch.no_grad(), torch.inference_mode(False):
                self._late.append((site, value.detach().clone()))

    def clear(self) -> None:
        self._late.clear()
        super().clear()

    def settle(self) -> None:
        """Wait for the device, and take what was put off."""
        torch.accelerator.synchronize()
        for site, value in self._late:
            super()._keep(site, value)
        self._late.clear()


class SoakRun(StoreRun):
    """A store on a real device, beside an oracle that does not wait for it before the store has."""

    def __init__(self, program: Program, model: ScriptedModel) -> None:
        super().__init__(program, None, model)
        self.oracle: LateOracle = LateOracle(model, program.sites, self.oracle.selection)

    def see(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.inference_mode(False):
            seen = {
                site: value.clone() for site, value in found.items()
            }  # as it is before it waits
        self.oracle.settle()
        return seen


class Streams:
    """Two streams of a CUDA device that a program's forward pass runs on.

    A switch leaves them in no order with one another, except where the model itself would race: a
    value that was changed in place on one stream may be freed afterwards to the stream that
    allocated it, which therefore waits before it goes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = torch.cuda.current_stream(device)
        self._streams = [self._first, torch.cuda.Stream(device)]  # type: ignore[no-untyped-call]
        self._must_wait = False

    def switch(self) -> None:
        before = self._streams.pop(0)
        self._streams.append(before)
        if self._must_wait:
            self._streams[0].wait_stream(before)
            self._must_wait = False
        torch.cuda.set_stream(self._streams[0])

    def join(self) -> None:
        """Before a value is changed: after whatever reads it, on either stream."""
        self._streams[0].wait_stream(self._streams[1])
        self._must_wait = True

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.set_stream(self._first)


@dataclass
class Soak:
    """What some programs did.

    Attributes:
        programs: How many were played.
        wrong: By seed, what was wrong with those that were.
        secs: How long it took.
    """

    programs: int = 0
    wrong: dict[int, str] = field(default_factory=dict)
    secs: float = 0.0


def soak(
    seeds: Iterable[int],
    place: str = "cuda",
    *,
    before: Callable[[int], None] = lambda seed: None,
    secs: float | None = None,
    most_wrong: int = 3,
) -> Soak:
    """Play the programs of these seeds until the time is over or enough of them went wrong.

    Args:
        seeds: One program each, the same ones on every device (`draw_any`).
        place: The torch device the models run on.
        before: Called with the seed before its program: disturbs the streams.
        secs: How long; `None` for all seeds.
        most_wrong: After so many wrong programs it stops.
    """
    gc.collect()
    gc.freeze()  # programs ask for many collections, which need not look at all of torch
    done = Soak()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in seeds:
            before(seed)
            try:
                play(draw_any(seed), place)
            except Exception as error:  # noqa: BLE001 - any way to fail is a finding
                done.wrong[seed] = f"{type(error).__name__}: {error}"[:300]
                clear_up()
            done.programs += 1
            done.secs = time.perf_counter() - started
            if len(done.wrong) >= most_wrong or (secs is not None and done.secs > secs):
                break
    return done


def clear_up() -> None:
    """Close what a program that failed left behind, so that the next one does not have to."""
    gc.collect()
    for _ in range(100):  # it is broken, and may refuse for as often as it has values
        try:
            close_orphans()
        except Exception:  # noqa: BLE001 - which has been said
            continue
        return


def replay(seed: int, place: str = "cuda") -> None:
    """The program of a seed once more, with its error."""
    play(draw_any(seed), place)


def draw(seed: int) -> random.Random:
    """A generator of the caller's own for a seed, which no program draws from."""
    return random.Random(seed * 7919 + 13)
