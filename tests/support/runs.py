"""Programs run against the oracle: the value judge, and what the run did."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

import fastcap
from fastcap import devices, reference
from fastcap.devices.base import AnyDevice
from fastcap.devices.simulated import SimulatedDevice, SimulatedStream
from fastcap.records import Statistics
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.programs import BUDGETS, REDUCERS, Program, Step, draw_program
from tests.support.scripted import (
    LEAVES,
    PlannedError,
    PlannedInterrupt,
    ScriptedModel,
    TableModel,
    World,
)


@contextmanager
def running_on(device: AnyDevice | None) -> Iterator[None]:
    """Models' values go through this device; `None` for the real ones."""

    def same(_: torch.device) -> AnyDevice | None:
        return device

    with devices.substitute(same):
        yield


def must_equal(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """The value judge.

    Raises:
        AssertionError: They differ; the message says where.
    """
    problems = differences(expected, found)
    assert not problems, "; ".join(problems)


WITHOUT_NUMPY = (torch.bfloat16, torch.float8_e4m3fn)


class StoreRun:
    """One store on one device, beside the oracle.

    Args:
        program: What is captured, and the steps of `run`.
        device: Where; `None` for the real ones.
        model: One that several stores share; its owner connects its world.
    """

    def __init__(
        self,
        program: Program,
        device: SimulatedDevice | None,
        model: ScriptedModel | None = None,
    ) -> None:
        self.program = program
        self.device = device
        self.model = model or ScriptedModel()
        if model is None:
            self.model.world = World(
                self.get_and_compare, self.switch_stream, self.join_streams, self.collect
            )
        selection: dict[str, Any] = {
            "positions": program.positions,
            "seq_dim": program.seq_dim,
            "batch_dim": program.batch_dim,
            "reduce": REDUCERS[program.reduce],
        }
        self.store = fastcap.ActivationStore(
            self.model,
            program.sites,
            zero_copy=program.zero_copy,
            staging_bytes=program.staging_bytes,
            pinned_bytes=program.pinned_bytes,
            calls=program.calls,
            **selection,
        )
        self.oracle = ReferenceStore(self.model, program.sites, make_selection(**selection))
        self.held: list[tuple[Tensor, Tensor]] = []
        self.streams = self._streams()

    def _streams(self) -> list[SimulatedStream]:
        return [self.device.compute, self.device.new_stream("other")] if self.device else []

    def run(self) -> Statistics:
        """Every step, then everything once more after the store is disabled.

        Raises:
            AssertionError: A value differed from the oracle's, or changed afterwards.
        """
        self.enable()
        for step in self.program.steps:
            self.do(step)
        self.compare()
        self.finish()
        return self.store.statistics()

    def do(self, step: Step) -> None:
        getattr(self, f"_do_{step.kind}")(step)

    def enable(self) -> None:
        if not self.store.enabled:
            self.store.enable()
            self.oracle.enable()

    def disable(self) -> None:
        self.store.disable()
        self.oracle.disable()

    def finish(self) -> None:
        """Values outlive the hooks, and nothing ever returned has changed."""
        self.disable()
        self.compare()
        for tensor, copy in self.held:
            self.must_equal({"held": copy}, {"held": tensor})

    def _do_pass(self, step: Step) -> None:
        self.call(lambda: self.model(step.actions), step.mode)

    def _do_leaf(self, step: Step) -> None:
        [action] = step.actions
        self.call(lambda: self.model.leaves[action.leaf](action.value), step.mode)

    def call(self, call: Callable[[], Any], mode: str) -> None:
        """Let the model run in some grad mode; what a program planned to raise ends here."""
        modes: dict[str, Callable[[], AbstractContextManager[Any]]]
        modes = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": nullcontext}
        try:
            with modes[mode]():
                call()
        except (PlannedError, PlannedInterrupt):
            return
        finally:
            if self.device is not None:
                self.device.use_stream(self.device.compute)
                self.device.join_streams()

    def _do_compare(self, step: Step) -> None:
        for site in step.sites:
            self.get_and_compare(site, step.flag)
        if not step.sites:
            self.compare()

    def _do_clear(self, step: Step) -> None:
        self.store.clear()
        self.oracle.clear()

    def _do_disable(self, step: Step) -> None:
        self.disable()
        if step.flag:
            self.enable()

    def _do_collect(self, step: Step) -> None:
        gc.collect()

    def _do_drop(self, step: Step) -> None:
        self.held = self.held[::2]

    def collect(self) -> None:
        self.held = self.held[1::2]
        gc.collect()

    def switch_stream(self) -> None:
        if self.device is not None:
            self.streams.append(self.streams.pop(0))
            self.device.use_stream(self.streams[0])

    def join_streams(self) -> None:
        if self.device is not None:
            self.device.join_streams()

    def get_and_compare(self, site: str, hold: bool = True) -> None:
        found = self.store.get(site)
        seen = self.see({} if found is None else {site: found})
        expected = self.oracle.get(site)
        assert (expected is None) == (found is None), f"{site}: {expected} expected, {found} found"
        if expected is not None and found is not None:
            self.must_equal({site: expected}, seen)
            assert self.store.get(site) is found
            if hold:
                self.hold(found, expected)

    def see(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """What was found, before the oracle is asked, as it is to be compared."""
        return found

    def hold(self, found: Tensor, expected: Tensor) -> None:
        """Keep a value, a view of it and its NumPy array until the end."""
        with torch.inference_mode(False):  # else views of it are inference tensors
            self.held += [(found, expected), (found.detach(), expected)]
            if found.dtype not in WITHOUT_NUMPY and not found.is_conj():
                self.held.append((torch.from_numpy(found.numpy()), expected))

    def compare(self) -> None:
        seen = self.see(self.store.activations)
        self.must_equal(self.oracle.activations, seen)
        for site, every in self.oracle.calls.items():
            expected = every if self.program.calls == "all" else every[-1:]
            found = self.store.calls(site)
            assert len(found) == len(expected), f"{site}: {len(found)} calls of {len(expected)}"
            for want, got in zip(expected, found, strict=True):
                self.must_equal({site: want}, {site: got})

    def must_equal(self, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
        """As `must_equal`; looking at values is not the model's doing."""
        with nullcontext() if self.device is None else self.device.muted():
            must_equal(expected, found)


def back_pressure(statistics: Statistics) -> set[str]:
    """Which ways of running out of memory a run went."""
    taken = {
        "wrap-around": statistics.copies > statistics.device_allocations,
        "slot wait": statistics.waits > 0,
        "spill": statistics.spills > 0,
        "lend": statistics.lends > 0,
    }
    return {path for path, was_taken in taken.items() if was_taken}


class Endless(IterableDataset[Any]):
    """A dataset that does not say how long it is, and may end with an error."""

    def __init__(self, samples: list[Any], raises: type[BaseException] | None = None) -> None:
        self.samples = samples
        self.raises = raises

    def __iter__(self) -> Iterator[Any]:
        yield from self.samples
        if self.raises:
            raise self.raises("planned")


def call_model(model: torch.nn.Module, batch: dict[str, Tensor], place: str = "cpu") -> Any:
    return model(batch["input_ids"].to(place))


@dataclass(frozen=True)
class RunProgram:
    """One dataset through `extract_representations` and through one or two streams.

    Attributes:
        place: The torch device that the model runs on. It is not drawn: `replace` it.
    """

    model_seed: int
    sites: tuple[str, ...]
    n_samples: int
    batch_size: int
    max_samples: int | None
    says_length: bool
    positions: Any
    widens: bool
    zero_copy: bool
    zips: bool
    ends_after: int | None
    prefetch: int
    staging_bytes: int
    pinned_bytes: int
    out: str = ""
    place: str = "cpu"

    def run(self) -> Statistics:
        model = TableModel(random.Random(self.model_seed))
        failed = None if self.ends_after is None else self.fail(model)
        kept = deepcopy(failed)
        self.extract(model)
        if not self.zips:
            counted = self.consume(model)
        else:
            counted = self.consume(model, model, TableModel(random.Random(self.model_seed + 1)))
        if failed is not None and kept is not None:
            must_equal(kept, failed)  # nothing has written to it since the run that failed
        return counted

    def paths(self) -> set[str]:
        """What kinds of things happen in it."""
        found = {
            "zipped streams": self.zips,
            "early end": self.ends_after is not None,
            "pinned result": self.out == "pinned",
        }
        return {path for path, is_there in found.items() if is_there}

    def smaller(self) -> Iterator[RunProgram]:
        """Fewer samples, sites and streams."""
        if self.zips:
            yield replace(self, zips=False)
        if self.ends_after is not None:
            yield replace(self, ends_after=None)
        if self.out:
            yield replace(self, out="")
        if self.n_samples > 1:
            yield replace(self, n_samples=self.n_samples - 1)
        for i in range(len(self.sites) if len(self.sites) > 1 else 0):
            yield replace(self, sites=self.sites[:i] + self.sites[i + 1 :])

    @property
    def selection(self) -> dict[str, Any]:
        dtype = torch.complex128 if self.widens else None
        return {"positions": self.positions, "dtype": dtype, "seq_dim": 1}

    @property
    def n_engines(self) -> int:
        """How many captures may use their budgets at once."""
        return 3 if self.zips else 1

    @property
    def budgets(self) -> dict[str, Any]:
        return {"staging_bytes": self.staging_bytes, "pinned_bytes": self.pinned_bytes}

    def call(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> Any:
        return call_model(model, batch, self.place)

    def samples(self) -> list[dict[str, Tensor]]:
        return [{"input_ids": torch.tensor([i, i + 1])} for i in range(self.n_samples)]

    def batches(self) -> list[dict[str, Tensor]]:
        samples, size = self.samples(), self.batch_size
        parts = [samples[i : i + size] for i in range(0, self.n_samples, size)]
        return [{"input_ids": torch.stack([s["input_ids"] for s in part])} for part in parts]

    def fail(self, model: TableModel) -> dict[str, Tensor] | None:
        """An extraction whose dataset raises at its end, or is interrupted there."""
        error = PlannedInterrupt if self.n_samples % 2 else PlannedError
        dataset = Endless(self.samples(), raises=error)
        out = self.make_out(self.expected(model, None))
        with suppress(error):
            fastcap.extract_representations(
                model,
                dataset,
                self.sites,
                self.place,
                self.batch_size,
                out=out,
                **self.selection,
                **self.budgets,
            )
            raise AssertionError("the error of the dataset is gone")
        return out

    def expected(self, model: TableModel, max_samples: int | None) -> dict[str, Tensor]:
        selection = make_selection(**self.selection)
        return reference.extract(
            model, self.batches(), self.sites, self.call, max_samples, selection
        )

    def make_out(self, expected: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """Memory for a result, with a row to spare, where the program wants it."""
        if not self.out:
            return None
        out = {
            site: torch.ones((len(value) + 1, *value.shape[1:]), dtype=value.dtype)
            for site, value in expected.items()
        }
        if self.out != "pinned":
            return out
        if self.place != "cpu":
            return {site: value.pin_memory() for site, value in out.items()}
        device = devices.open_device(torch.device("cpu"))
        if isinstance(device, SimulatedDevice):
            for value in out.values():
                device.pin(value)
        return out

    def extract(self, model: TableModel) -> None:
        expected = self.expected(model, self.max_samples)
        out = self.make_out(expected)
        dataset: Any = self.samples() if self.says_length else Endless(self.samples())
        found = fastcap.extract_representations(
            model,
            dataset,
            self.sites,
            self.place,
            self.batch_size,
            self.max_samples,
            out=out,
            **self.selection,
            **self.budgets,
        )
        must_equal(expected, found)
        for site, tensor in found.items():
            if out is None:
                assert tensor.untyped_storage().nbytes() == tensor.nbytes
            else:
                assert not tensor.numel() or tensor.data_ptr() == out[site].data_ptr()

    def open_stream(self, model: TableModel) -> fastcap.Stream:
        return fastcap.stream(
            model,
            self.batches(),
            self.sites,
            zero_copy=self.zero_copy,
            prefetch=self.prefetch,
            device=self.place,
            **self.selection,
            **self.budgets,
        )

    def expected_stream(self, model: TableModel) -> list[dict[str, Tensor]]:
        selection = make_selection(**self.selection)
        return list(reference.stream(model, self.batches(), self.sites, self.call, selection))

    def consume(self, *models: TableModel) -> Statistics:
        """Streams over these models, taken from in turn and perhaps left before their end."""
        expected = [self.expected_stream(model) for model in models]
        held: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        with ExitStack() as stack:
            streams = [stack.enter_context(self.open_stream(model)) for model in models]
            for number, wants in enumerate(zip(*expected, strict=True)):
                if number == self.ends_after:
                    break
                for want, records in zip(wants, streams, strict=True):
                    got = dict(next(records))
                    must_equal(want, got)
                    held.append((want, got))
            else:
                assert not any(list(records) for records in streams), "more than expected"
        for want, got in held:
            must_equal(want, got)
        return streams[0].statistics()


def draw_any(seed: int) -> Program | RunProgram:
    """The program of a seed: every third is a run over a dataset, the others drive a store."""
    draw = random.Random(seed)
    return draw_run(draw) if seed % 3 == 2 else draw_program(draw)


def run_on(program: Program | RunProgram, device: SimulatedDevice | None) -> Statistics:
    """Run a program beside the oracle, on a device or on the real ones.

    Raises:
        AssertionError: A value differed.
    """
    with running_on(device):
        return StoreRun(program, device).run() if isinstance(program, Program) else program.run()


def draw_run(draw: random.Random) -> RunProgram:
    return RunProgram(
        model_seed=draw.randrange(1 << 20),
        sites=tuple(draw.sample(LEAVES, draw.randint(1, len(LEAVES)))),
        n_samples=draw.randint(1, 9),
        batch_size=draw.randint(1, 4),
        max_samples=draw.choice((None, draw.randint(1, 12))),
        says_length=draw.random() < 0.5,
        positions=draw.choice((None, 0, -1, slice(0, 1), (1, 0))),
        widens=draw.random() < 0.3,
        zero_copy=draw.random() < 0.5,
        zips=draw.random() < 0.3,
        ends_after=draw.choice((None, 1, 2)),
        prefetch=draw.randint(0, 2),
        staging_bytes=draw.choice(BUDGETS),
        pinned_bytes=draw.choice(BUDGETS),
        out=draw.choice(("", "", "plain", "pinned", "pinned")),
    )
