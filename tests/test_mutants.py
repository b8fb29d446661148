"""The tests are tested: engines that are broken on purpose are seen, and the sound one is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import fastcap
from tests.mutants import BLOCK, PAGE, all_mutants, seeds_for
from tests.support.killing import hunt
from tests.support.mutants import MUTANTS, Mutant
from tests.support.mutation import Change, source_of
from tests.support.mutation import find_function as find

pytestmark = pytest.mark.filterwarnings(
    "ignore:Nothing is captured:fastcap.FastcapWarning",
    "ignore:A pass calls these:fastcap.FastcapWarning",
)

N_PROGRAMS = 100  # ten schedules each
RULE = re.compile(r"\bR(\d+)\b")
SCENARIOS = {m.scenario.__name__: m.scenario for m in MUTANTS if m.scenario is not None}


def identify(mutant: Mutant) -> str:
    return f"{mutant.rule}-{mutant.drops}"


@pytest.mark.parametrize("mutant", [m for m in all_mutants() if not m.survives], ids=identify)
def test_a_broken_engine_is_seen(mutant: Mutant) -> None:
    kill = hunt(mutant, seeds_for(mutant, N_PROGRAMS))
    assert kill.is_dead, f"{kill.n_schedules} schedules, and no judge saw it"


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_the_sound_engine_passes_every_scenario(scenario: Callable[[], None]) -> None:
    scenario()


def test_a_change_lasts_as_long_as_its_block() -> None:
    [change] = MUTANTS[0].changes
    assert isinstance(change, Change)
    function = find(change.target)
    before = function.__code__
    with change.applied():
        assert function.__code__ is not before
    assert function.__code__ is before


def test_a_change_that_does_not_fit_the_source_is_an_error() -> None:
    change = Change(MUTANTS[0].changes[0].target, "no such line", "pass")
    with pytest.raises(LookupError, match="no such line"), change.applied():
        pass


def test_a_hunt_begins_where_the_page_says_and_leaves_nothing_out() -> None:
    late = next(m for m in MUTANTS if m.drops == "a flush marks one of the streams that packed")
    assert seeds_for(late, N_PROGRAMS)[0] > 0
    assert sorted(seeds_for(late, N_PROGRAMS)) == list(range(N_PROGRAMS))


def test_survivors_have_a_reason() -> None:
    for mutant in all_mutants():
        if mutant.survives:
            assert len(mutant.survives) > 40


# Engine, mutants and page speak of the same rules


def rules_in(text: str) -> set[int]:
    return {int(number) for number in RULE.findall(text)}


def test_every_rule_up_to_thirteen_has_a_mutant() -> None:
    assert {int(mutant.rule[1:]) for mutant in MUTANTS} == set(range(1, 14))


def test_every_defect_is_repeated_or_explained() -> None:
    text = PAGE.read_text()
    repeated = {mutant.defect for mutant in MUTANTS if mutant.defect}
    listed = set(re.findall(r"^\| (M\d+) \|", text, re.MULTILINE))
    assert listed == {f"M{number}" for number in range(1, 12)}
    for defect in listed - repeated:
        assert re.search(rf"^\| {defect} \|.*no such line", text, re.MULTILINE), defect


def test_rules_named_in_the_engine_are_on_the_page() -> None:
    package = Path(fastcap.__file__).parent
    named = set().union(*(rules_in(path.read_text()) for path in package.rglob("*.py")))
    on_page = {int(n) for n in re.findall(r"^\| R(\d+) \|", PAGE.read_text(), re.MULTILINE)}
    assert named <= on_page
    assert set(range(1, 14)) <= named


def test_the_table_on_the_page_lists_every_mutant() -> None:
    found = BLOCK.search(PAGE.read_text())
    assert found is not None
    for mutant in all_mutants():
        assert f"| {mutant.rule} | {mutant.drops}" in found[0]
    assert "survives: |" not in found[0]


def test_sources_are_those_of_the_functions() -> None:
    assert source_of(find("fastcap.transfer.pool:Chunk.reserve")).startswith("def reserve(")
