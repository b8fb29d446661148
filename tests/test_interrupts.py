"""A fixed part of what `make interrupts` plays, and that it sees what it is for."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.interrupts import main, report
from tests.support.interrupting import KINDS, PLACES, Tally, draw_program, lines_of, play
from tests.support.mutation import Change

N_PROGRAMS = len(KINDS) * len(PLACES)
N_LINES = 8  # of each
STORES = [seed for seed in range(32) if draw_program(seed).kind == "store" and seed % 16 > 3]


def test_no_line_of_a_seeded_part_is_one_too_many(summary: Callable[[str, str], None]) -> None:
    tally = Tally()
    for seed in range(N_PROGRAMS):
        n_lines = len(lines_of(seed))
        tally.n_programs += 1
        for at in sorted(random.Random(seed).sample(range(1, n_lines + 1), N_LINES)):
            play(seed, at, tally)
    summary("programs interrupted before some of their lines (seeds from 0)", report(tally))
    assert not tally.findings, tally.findings[0].report()
    assert tally.n_interrupts > N_PROGRAMS * N_LINES * 0.9  # threads may run fewer lines
    assert len(tally.places) > tally.n_interrupts // 3


BROKEN = {
    "a slot between two lists": Change(
        "fastcap.transfer.pool:SlotPool.take",
        "self._slots = deque((*(other for other in self._slots if other is not slot), slot))",
        "self._slots.remove(slot)\n            self._slots.append(slot)",
    ),
    "a chunk that is being copied and does not know": Change(
        "fastcap.transfer.staged:StagedTransfer._copy_to_slot", "chunk.is_given = True", "pass"
    ),
    "a store that forgets its engine first": Change(
        "fastcap.activations:ActivationStore.disable",
        "engine = self._engine\n",
        "engine, self._engine = self._engine, None\n",
    ),
    "a hook that is taken from the list first": Change(
        "fastcap.model.hooks:detach",
        "for handle in removed:\n",
        "for handle in iter(lambda: handles.pop() if handles else None, None):\n",
    ),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_an_interrupt_may_not_come_between_is_seen(change: Change) -> None:
    function = change.target.rpartition(".")[2].rpartition(":")[2]
    tally = Tally()
    with change.applied():
        for seed in STORES:
            for at, where in enumerate(lines_of(seed), 1):
                if where.endswith(f" in {function}") and not tally.findings:
                    play(seed, at, tally)
    assert tally.findings


def test_one_interrupt_can_be_played_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert draw_program(4).kind == "store"
    assert main(["--seed", "4", "--at", "700"]) == 0
    assert "findings                       0" in capsys.readouterr().out
