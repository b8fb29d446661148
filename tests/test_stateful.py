"""Anything that can be done to stores and streams, in any order, against the oracle."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastcap
from fastcap import reference
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import ReferenceStore
from tests.support.judging import warm_up
from tests.support.programs import BUDGETS, MODES, Program, Step, draw_program
from tests.support.runs import StoreRun, call_model, must_equal, running_on
from tests.support.scripted import LEAVES, ScriptedModel, TableModel, World

pytestmark = pytest.mark.filterwarnings(
    "ignore:Nothing is captured:fastcap.FastcapWarning",
    "ignore:A pass calls these:fastcap.FastcapWarning",
)

seeds = st.integers(0, 1 << 16)
N_STORES = 2


class Zipped:
    """Two streams over two models, taken from in any order."""

    def __init__(self, seed: int, zero_copy: bool, budget: int) -> None:
        self.models = [TableModel(random.Random(seed + i)) for i in range(2)]
        self.batches = [{"input_ids": torch.tensor([[i, i + 1], [i, 3]])} for i in range(4)]
        self.streams = [
            fastcap.stream(
                model,
                self.batches,
                LEAVES[:2],
                zero_copy=zero_copy,
                staging_bytes=budget,
                pinned_bytes=budget,
            )
            for model in self.models
        ]
        self.expected = [
            reference.stream(model, self.batches, LEAVES[:2], call_model) for model in self.models
        ]
        self.held: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def advance(self, which: int) -> None:
        got, want = next(self.streams[which], None), next(self.expected[which], None)
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            must_equal(want, dict(got))
            self.held.append((want, dict(got)))

    def close(self) -> None:
        for records in self.streams:
            records.close()
        for want, got in self.held:
            must_equal(want, got)


class Captures(RuleBasedStateMachine):
    """Stores on one model, streams over others, one device."""

    @initialize(kind=st.sampled_from([*EXTREMES, "random"]), seed=seeds, is_watched=st.booleans())
    def start(self, kind: str, seed: int, is_watched: bool) -> None:
        warm_up()
        self.device = SimulatedDevice(Schedule(kind, seed), patience=200_000)
        self.stack = ExitStack()
        self.stack.enter_context(running_on(self.device))
        if is_watched:
            self.stack.enter_context(self.device.watching())
        self.model = ScriptedModel()
        self.model.world = World(
            self.get, self.switch_stream, self.device.join_streams, self.collect
        )
        self.runs: list[StoreRun] = []
        self.streams: Zipped | None = None

    def get(self, site: str) -> None:
        for run in self.runs:
            run.get_and_compare(site)

    def collect(self) -> None:
        for run in self.runs:
            run.collect()

    def switch_stream(self) -> None:
        for run in self.runs[:1]:
            run.switch_stream()

    # Stores

    @precondition(lambda self: len(self.runs) < N_STORES)
    @rule(seed=seeds)
    def open_store(self, seed: int) -> None:
        run = StoreRun(self.plan(seed), self.device, self.model)
        run.enable()
        self.runs.append(run)

    def plan(self, seed: int) -> Program:
        return draw_program(random.Random(seed), with_selection=False)

    @precondition(lambda self: self.runs)
    @rule(index=st.integers(0, N_STORES - 1), seed=seeds)
    def replace_store(self, index: int, seed: int) -> None:
        """With other sites and budgets; what the old one returned must stay."""
        index %= len(self.runs)
        self.runs[index].finish()
        self.runs[index] = StoreRun(self.plan(seed), self.device, self.model)
        self.runs[index].enable()

    @precondition(lambda self: self.runs)
    @rule(
        index=st.integers(0, N_STORES - 1),
        kind=st.sampled_from(["compare", "clear", "disable", "collect", "drop"]),
        flag=st.booleans(),
        sites=st.lists(st.sampled_from(LEAVES), unique=True),
    )
    def do_to_store(self, index: int, kind: str, flag: bool, sites: list[str]) -> None:
        self.runs[index % len(self.runs)].do(Step(kind, sites=tuple(sites), flag=flag))

    @precondition(lambda self: self.runs)
    @rule(index=st.integers(0, N_STORES - 1))
    def enable(self, index: int) -> None:
        self.runs[index % len(self.runs)].enable()

    @precondition(lambda self: self.runs)
    @rule(index=st.integers(0, N_STORES - 1))
    def exit_store(self, index: int) -> None:
        self.runs.pop(index % len(self.runs)).finish()

    # The model

    @precondition(lambda self: self.runs)
    @rule(seed=seeds, mode=st.sampled_from(MODES))
    def run_pass(self, seed: int, mode: str) -> None:
        """Calls, in-place changes, frees, nesting, stream switches, raises, interrupts, gets."""
        program = draw_program(random.Random(seed), with_selection=False)
        for step in program.steps:
            if step.kind in ("pass", "leaf"):
                self.runs[0].do(Step(step.kind, step.actions, mode))
                return

    # Streams

    @precondition(lambda self: self.streams is None)
    @rule(seed=seeds, zero_copy=st.booleans(), budget=st.sampled_from(BUDGETS))
    def open_streams(self, seed: int, zero_copy: bool, budget: int) -> None:
        self.streams = Zipped(seed, zero_copy, budget)

    @precondition(lambda self: self.streams is not None)
    @rule(which=st.integers(0, 1))
    def take_record(self, which: int) -> None:
        assert self.streams is not None
        self.streams.advance(which)

    @precondition(lambda self: self.streams is not None)
    @rule()
    def close_streams(self) -> None:
        assert self.streams is not None
        self.streams.close()
        self.streams = None

    # Threads

    @rule(seed=seeds)
    def run_threads(self, seed: int) -> None:
        """Threads that each run their own model, on the same device."""
        problems: list[BaseException] = []

        def work(number: int) -> None:
            try:
                model = TableModel(random.Random(seed + number))
                with (
                    fastcap.ActivationStore(
                        model, LEAVES, staging_bytes=512, pinned_bytes=512
                    ) as store,
                    ReferenceStore(model, LEAVES) as oracle,
                ):
                    for token in range(3):
                        model(torch.tensor([[token, 2]]))
                        must_equal(oracle.activations, store.activations)
            except BaseException as error:  # noqa: BLE001 - raised below
                problems.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for problem in problems:
            raise problem

    # Always

    @invariant()
    def nothing_races(self) -> None:
        if hasattr(self, "device"):
            assert not self.device.judge.violations, self.device.judge.violations[0]

    def teardown(self) -> None:
        if not hasattr(self, "device"):
            return
        with self.stack:
            for run in self.runs:
                run.finish()
            if self.streams is not None:
                self.streams.close()
        gc.collect()
        assert not self.device.judge.violations, self.device.judge.violations[0]
        assert (self.device.counters.staging_bytes, self.device.counters.pinned_bytes) == (0, 0)


TestCaptures = Captures.TestCase
TestCaptures.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
