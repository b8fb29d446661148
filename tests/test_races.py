"""A fixed part of what `make races` plays: every judge, every extreme schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.races import BACK_PRESSURE, LEAST_SHARE, main, play_some

N_PROGRAMS = 60
N_SCHEDULES = 10


def test_no_judge_refuses_a_seeded_part_of_the_races(summary: Callable[[str, str], None]) -> None:
    tally = play_some(range(N_PROGRAMS), N_SCHEDULES)
    summary("random programs under many schedules (seeds from 0)", tally.table())
    assert tally.failure is None, tally.failure
    assert tally.n_runs == N_PROGRAMS * N_SCHEDULES
    assert len(tally.interleavings) > tally.n_runs // 4
    rare = {path: tally.share(path) for path in BACK_PRESSURE if tally.share(path) < LEAST_SHARE}
    assert not rare, "paths that too few programs took"


def test_one_seed_can_be_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--schedule", "late", "--schedule-seed", "3"]) == 0
    assert capsys.readouterr().out == "Nothing was found.\n"
