"""Random programs against the oracle on the devices that are here.

On the simulated accelerator, under many schedules and before more judges, they are played by
`tests/test_races.py`.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.judging import warm_up
from tests.support.runs import draw_any, run_on

pytestmark = pytest.mark.filterwarnings(
    "ignore:Nothing is captured:fastcap.FastcapWarning",
    "ignore:A pass calls these:fastcap.FastcapWarning",
)

N_PROGRAMS = 600


def test_programs_on_the_cpu_equal_the_oracle() -> None:
    warm_up()
    for seed in range(N_PROGRAMS):
        try:
            run_on(draw_any(seed), None)
        except BaseException as error:
            error.add_note(f"replay with run_on(draw_any({seed}), None)")
            raise


@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(st.integers(0, 1 << 30))
def test_programs_of_any_seed_equal_the_oracle(seed: int) -> None:
    run_on(draw_any(seed), None)
