"""The archive after every fault at every file call: a part of what `make faults` plays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveWriteError
from tests.faults import BLOCK, PAGE
from tests.support.disk import Disk, fails
from tests.support.fault_judging import find_incomplete, find_leftover, find_lost
from tests.support.fault_mutants import MUTANTS, Mutant, hunt
from tests.support.fault_play import ROOT, TOTAL, History, fresh_disk, play
from tests.support.fault_points import Depth, play_program
from tests.support.fault_programs import PROGRAMS, Program
from tests.support.filesystem import CRASHES, KINDS, Effect, Fault, SimulatedFiles, Watch, crash
from tests.support.mutation import Change

SAMPLED = Depth(share=0.04, second_share=0.005)
HUNT = Depth(share=0.05, second_share=0)
WHOLE = Depth(power_seeds=6, second_power_seeds=1, second_share=0.02)


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_nothing_is_lost_whatever_happens(program: Program) -> None:
    tally = play_program(program, SAMPLED)
    assert tally.failures == []
    assert tally.points.total() > 30


def test_every_kind_of_fault_is_played_at_every_operation() -> None:
    tally = play_program(PROGRAMS[0], WHOLE)
    assert tally.failures == []
    n_operations = play(PROGRAMS[0], fresh_disk(PROGRAMS[0])).n_operations
    assert tally.points["power"] == n_operations * WHOLE.power_seeds
    assert tally.points["kill"] >= n_operations
    assert {kind for kind in KINDS if tally.points[kind] >= n_operations} == set(KINDS)
    assert tally.points.keys() >= {
        "second kill",
        "second power",
        "second error",
        "another run",
        "a step of another",
        "a death of another",
    }


@pytest.mark.parametrize("kind", CRASHES)
def test_a_crash_from_a_copy_is_a_crash_of_the_process(kind: str) -> None:
    """The short way to a crashed disk and the long one lead to the same."""
    program = PROGRAMS[4]
    n_operations = play(program, fresh_disk(program)).n_operations
    for operation in range(n_operations):
        crashed, copied = crash_both_ways(program, Fault(operation, kind, seed=operation))
        assert crashed.fingerprint() == copied.fingerprint()


def crash_both_ways(program: Program, fault: Fault) -> tuple[Disk, Disk]:
    disk, copies = fresh_disk(program), []

    def watch(_: History) -> Watch:
        def look(number: int, _: str, effect: Effect) -> None:
            if number == fault.operation:
                copies.append(crash(disk, effect, fault.kind, fault.seed))

        return look

    play(program, disk, fault, watch)
    [copied] = copies
    return disk, copied


def test_programs_differ() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) >= 20
    written = [play_on_fresh(program).image() for program in PROGRAMS]
    assert all(image != other for i, image in enumerate(written) for other in written[:i])


def play_on_fresh(program: Program) -> Disk:
    disk = fresh_disk(program)
    play(program, disk)
    return disk


# The judges


@pytest.fixture
def disk() -> Disk:
    return play_on_fresh(PROGRAMS[1])


def shard_of(disk: Disk) -> str:
    return next(path for path in disk.image() if path.endswith(".safetensors"))


def test_judges_accept_what_is_whole(disk: Disk) -> None:
    assert find_lost(PROGRAMS[1], disk, {0, 1, 2, 3}) is None
    assert find_incomplete(PROGRAMS[1], disk) is None
    assert find_leftover(disk) is None


def test_judges_see_a_sample_that_is_gone(disk: Disk) -> None:
    assert find_lost(PROGRAMS[1], disk, {0, 9}) == "acknowledged samples are lost: [9]"
    assert "the total is lost" in str(find_lost(PROGRAMS[-1], disk, {TOTAL}))


def test_judges_see_an_archive_that_is_gone() -> None:
    disk = fresh_disk(PROGRAMS[1])
    assert find_lost(PROGRAMS[1], disk, set()) is None
    assert "lost with the archive" in str(find_lost(PROGRAMS[1], disk, {0}))


def test_judges_see_a_wrong_bit(disk: Disk) -> None:
    node = disk.file_at(ROOT.joinpath(shard_of(disk)))
    node.data[4096] ^= 1
    assert find_lost(PROGRAMS[1], disk, {0}) == "'a' of sample 0 is wrong"
    assert "checksum" in str(find_incomplete(PROGRAMS[1], disk))


def test_judges_see_a_committed_group_without_its_file(disk: Disk) -> None:
    disk.unlink(ROOT.joinpath(shard_of(disk)))
    assert "lost" in str(find_lost(PROGRAMS[1], disk, {0, 1, 2, 3}))
    assert "damaged" in str(find_lost(PROGRAMS[1], disk, {2, 3}))
    assert "of 4 samples" in str(find_incomplete(PROGRAMS[1], disk))


@pytest.mark.parametrize("name", ["stray", "000009-000.safetensors.tmp"])
def test_judges_see_what_belongs_to_nothing(disk: Disk, name: str) -> None:
    directory = ROOT.joinpath(shard_of(disk)).parent
    disk.add_file(directory / name)
    assert find_leftover(disk) == f"a file that no journal names: {directory / name}"


def test_judges_see_a_file_beside_the_writers(disk: Disk) -> None:
    disk.add_file(ROOT / "stray")
    assert find_leftover(disk) == f"a file that belongs to nothing: {ROOT / 'stray'}"


# Broken protocols


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.drops)
def test_a_broken_protocol_is_seen(mutant: Mutant) -> None:
    kill = hunt(mutant, HUNT)
    assert kill.is_dead, f"{kill.n_points} points, and no judge saw it"


def test_the_table_on_the_page_lists_every_mutant() -> None:
    found = BLOCK.search(PAGE.read_text())
    assert found is not None
    for mutant in MUTANTS:
        assert f"\n| {mutant.drops} | " in found[0]
    assert f"{len(MUTANTS)} of {len(MUTANTS)} are seen." in found[0]


def test_a_mutant_names_lines_that_are_there() -> None:
    for mutant in MUTANTS:
        assert all(isinstance(change, Change) for change in mutant.changes)
        with mutant.applied():
            pass


# Directories above the archive


class Foreign(SimulatedFiles):
    """The root of the disk is somebody else's."""

    code = errno.EACCES

    def sync_dir(self, path: Path) -> None:
        if path == Path("/"):
            raise fails(self.code, path)
        super().sync_dir(path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL])
def test_a_directory_above_that_cannot_be_synced_is_not_ours(code: int) -> None:
    files = Foreign(fresh_disk(PROGRAMS[0]))
    files.code = code
    writer = Writer(ROOT, PROGRAMS[0].meta(), files=files)
    writer.append([0, 1], *PROGRAMS[0].values([0, 1]))
    assert writer.commit() is not None
    writer.close()


def test_a_directory_above_that_fails_ends_the_writer() -> None:
    files = Foreign(fresh_disk(PROGRAMS[0]))
    files.code = errno.EIO
    writer = Writer(ROOT, PROGRAMS[0].meta(), files=files)
    for _ in range(2):
        with pytest.raises(ArchiveWriteError, match="Syncing / failed: Input/output error"):
            writer.append([0, 1], *PROGRAMS[0].values([0, 1]))
    writer.close()
