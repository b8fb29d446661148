"""Each judge is tested by itself: it reports what it is for, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice, StuckError
from fastcap.devices.simulated.order import HOST, OrderJudge
from tests.support.judging import Failure, Verdict, play, schedules, search, warm_up
from tests.support.programs import shrink
from tests.support.runs import draw_any, must_equal

FULL, MEMORY = 256, "memory"


def judge_of(*accesses: tuple[str, int, int, bool]) -> OrderJudge:
    judge = OrderJudge()
    for actor, start, stop, is_write in accesses:
        judge.access(actor, f"step of {actor}", MEMORY, start, stop, is_write)
    return judge


@pytest.mark.parametrize(
    ("first_writes", "second_writes"),
    [(True, False), (False, True), (True, True)],
    ids=["read after write", "write after read", "write after write"],
)
@pytest.mark.parametrize(
    "actors", [("stream a", "stream b"), ("stream a", HOST), (HOST, "stream a")]
)
def test_an_unordered_pair_is_reported_with_both_names(
    actors: tuple[str, str], first_writes: bool, second_writes: bool
) -> None:
    first, second = actors
    judge = judge_of((first, 0, FULL, first_writes), (second, 0, FULL, second_writes))
    [violation] = judge.violations
    assert f"step of {first}" in violation
    assert f"step of {second}" in violation


@pytest.mark.parametrize(
    "actors", [("stream a", "stream b"), ("stream a", HOST), (HOST, "stream a")]
)
@pytest.mark.parametrize(
    ("first_writes", "second_writes"), [(True, False), (False, True), (True, True)]
)
def test_an_ordered_pair_is_not(
    actors: tuple[str, str], first_writes: bool, second_writes: bool
) -> None:
    first, second = actors
    judge = OrderJudge()
    judge.access(first, "first", MEMORY, 0, FULL, first_writes)
    judge.learn(second, judge.snapshot(first))
    judge.access(second, "second", MEMORY, 0, FULL, second_writes)
    assert not judge.violations


def test_reads_do_not_conflict() -> None:
    assert not judge_of(("a", 0, FULL, False), ("b", 0, FULL, False)).violations


def test_other_bytes_do_not_conflict() -> None:
    assert not judge_of(("a", 0, 128, True), ("b", 128, FULL, True)).violations


def test_overlapping_bytes_conflict() -> None:
    assert judge_of(("a", 0, 129, True), ("b", 128, FULL, True)).violations


def test_one_stream_is_in_order_with_itself() -> None:
    assert not judge_of(("a", 0, FULL, True), ("a", 0, FULL, True)).violations


def test_edges_chain() -> None:
    judge = OrderJudge()
    judge.access("a", "first", MEMORY, 0, FULL, True)
    judge.learn("b", judge.snapshot("a"))
    judge.learn("c", judge.snapshot("b"))
    judge.access("c", "third", MEMORY, 0, FULL, True)
    assert not judge.violations


def test_an_edge_covers_what_was_before_it_only() -> None:
    judge = OrderJudge()
    seen = judge.snapshot("a")
    judge.access("a", "first", MEMORY, 0, FULL, True)
    judge.learn("b", seen)
    judge.access("b", "second", MEMORY, 0, FULL, True)
    assert judge.violations


def test_an_earlier_access_behind_an_ordered_read_is_not_forgotten() -> None:
    judge = OrderJudge()
    judge.access("a", "first", MEMORY, 0, FULL, True)
    judge.learn("b", judge.snapshot("a"))
    judge.access("b", "second", MEMORY, 0, FULL, False)
    judge.access("c", "third", MEMORY, 0, FULL, False)
    [violation] = judge.violations
    assert "first" in violation


def test_memory_that_was_given_up_may_not_be_used() -> None:
    judge = OrderJudge()
    judge.forget("a", "release", MEMORY, FULL)
    judge.learn("b", judge.snapshot("a"))
    judge.access("b", "late", MEMORY, 0, FULL, False)
    assert "given up" in judge.violations[0]


def test_giving_memory_up_while_it_is_read_is_reported() -> None:
    judge = OrderJudge()
    judge.access("b", "reader", MEMORY, 0, FULL, False)
    judge.forget("a", "release", MEMORY, FULL)
    assert "reader" in judge.violations[0]


# On a device


def open_device(kind: str = "early") -> SimulatedDevice:
    return SimulatedDevice(Schedule(kind))


def test_a_hold_waits_for_the_mark_at_the_time_of_the_call() -> None:
    device = open_device("late")
    other, event = device.new_stream("other"), device.event()
    staging = device.staging(FULL)
    device.record(event, device.compute)
    device.wait_event(other, event)  # before the pack
    device.pack(torch.ones(8), staging, 0, torch.float32)
    device.record(event, device.compute)  # marked again, too late for the hold
    device._of_thread.stream = other
    device.pack(torch.ones(8), staging, 0, torch.float32)
    assert "pack on other" in device.judge.violations[0]


@pytest.mark.parametrize("kind", EXTREMES)
def test_a_race_is_reported_under_every_schedule(kind: str) -> None:
    device = open_device(kind)
    staging, slot = device.staging(FULL), device.host(FULL)
    device.pack(torch.ones(8), staging, 0, torch.float32)
    device.copy(staging, slot, 32, after=(), then=())
    assert "read by copy" in device.judge.violations[0]


def test_a_finding_survives_an_error() -> None:
    device = open_device()
    staging, slot = device.staging(FULL), device.host(FULL)

    def race_and_fail() -> None:
        device.pack(torch.ones(8), staging, 0, torch.float32)
        device.copy(staging, slot, 32, after=(), then=())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        race_and_fail()
    assert device.judge.violations


@pytest.mark.parametrize("waits", [False, True])
def test_reading_a_slot_is_reported_unless_it_is_behind_its_event(waits: bool) -> None:
    device = open_device()
    staging, slot = device.staging(FULL), device.host(FULL)
    packed, landed = device.event(), device.event()
    device.pack(torch.ones(8), staging, 0, torch.float32)
    device.record(packed, device.compute)
    device.copy(staging, slot, 32, after=[packed], then=[landed])
    if waits:
        device.synchronize(landed)
    device.read(slot, 0, torch.float32, torch.empty(8))
    found = [
        violation for violation in device.judge.violations if "read by read on host" in violation
    ]
    assert bool(found) is not waits
    assert len(device.judge.violations) == len(found)


def test_reusing_staging_before_its_copy_has_read_it_is_reported() -> None:
    device = open_device()
    staging, slot, packed = device.staging(FULL), device.host(FULL), device.event()
    device.pack(torch.ones(8), staging, 0, torch.float32)
    device.record(packed, device.compute)
    device.copy(staging, slot, 32, after=[packed], then=())
    device.release(staging)
    assert "release" in device.judge.violations[0]


def test_a_copy_to_memory_that_is_no_slot_is_reported() -> None:
    device = open_device()
    staging, slot = device.staging(FULL), device.host(FULL)
    device.release(slot)
    device.copy(staging, slot, 32, after=(), then=())
    assert any("neither staging nor a slot" in violation for violation in device.judge.violations)


def test_packing_on_a_stream_that_the_model_left_is_reported() -> None:
    """Seen only because the model's own writes are."""
    device = open_device()
    other, staging = device.new_stream("other"), device.staging(FULL)
    with device.watching():
        device.use_stream(other)
        value = torch.zeros(8) + 1
        device.use_stream(device.compute)  # as an engine that remembers its stream
        device.pack(value, staging, 0, torch.float32)
    assert "pack on compute of model memory" in device.judge.violations[0]


def test_a_model_that_changes_a_value_in_place_races_with_no_pack_on_its_stream() -> None:
    device = open_device()
    staging = device.staging(FULL)
    with device.watching():
        value = torch.zeros(8) + 1
        device.pack(value, staging, 0, torch.float32)
        value.add_(1)
    assert not device.judge.violations


def test_memory_at_the_address_of_freed_memory_is_other_memory() -> None:
    device = open_device()
    other = device.new_stream("other")
    with device.watching():
        for stream in (device.compute, other) * 5:
            device.use_stream(stream)
            value = torch.zeros(1000)
            value.add_(1)
            del value
    assert not device.judge.violations


# Value


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1]), torch.tensor([2])),
        (torch.tensor([1], dtype=torch.int32), torch.tensor([1])),
        (torch.ones(2, 1), torch.ones(1, 2)),
        (
            torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32),
            torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
        ),
    ],
    ids=["sign of zero", "one value", "dtype", "shape", "payload of NaN"],
)
def test_the_value_judge_sees_one_bit(want: torch.Tensor, got: torch.Tensor) -> None:
    must_equal({"a": want}, {"a": want.clone()})
    with pytest.raises(AssertionError):
        must_equal({"a": want}, {"a": got})


# Seeds


def test_a_seed_replays_a_run_exactly() -> None:
    warm_up()
    for seed in range(12):
        first = [play(draw_any(seed), schedule).fingerprint for schedule in schedules(seed, 3)]
        again = [play(draw_any(seed), schedule).fingerprint for schedule in schedules(seed, 3)]
        assert first == again


def test_a_failure_names_its_seed_and_a_smaller_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedDevice, "synchronize", lambda self, event: None)
    failure = search(range(0, 30, 3), 1)
    assert failure is not None
    report = failure.report()
    assert f"--seed {failure.seed} --schedule '{failure.schedule.kind}'" in report
    assert "shrunk: Program(" in report


def test_shrinking_keeps_what_fails_and_drops_the_rest() -> None:
    program = next(p for seed in range(0, 60, 3) if len((p := draw_any(seed)).steps) > 5)  # type: ignore[union-attr]
    has_pass: Callable[..., bool] = lambda p: any(step.kind == "pass" for step in p.steps)  # noqa: E731
    smallest = shrink(program, has_pass)
    assert [step.kind for step in smallest.steps] == ["pass"]  # type: ignore[union-attr]


def test_an_engine_that_gets_nowhere_is_stopped() -> None:
    device = SimulatedDevice(patience=100)
    for _ in range(100):
        device.query(device.event())
    with pytest.raises(StuckError, match="still going after 100 calls"):
        device.query(device.event())


def test_a_verdict_is_true_when_something_was_found() -> None:
    assert not Verdict()
    assert Verdict({"order": "something"})
    assert Failure(0, Schedule("late", 3), Verdict({"order": "x"})).schedule.seed == 3
