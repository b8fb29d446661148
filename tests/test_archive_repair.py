"""Whole shards that no journal line names: reported, kept, and adopted when that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL
from fastcap.archive.limits import GroupLimits
from fastcap.archive.reader import open_archive, reopen
from fastcap.archive.repair import repair, repair_archive
from fastcap.archive.verification import UNLISTED
from fastcap.archive.writer import Writer
from fastcap.cli.app import make_app
from fastcap.errors import ArchiveError, ArgumentTypeError, FastcapWarning
from tests.support.archives import append, check_values, make_meta, write, write_archive
from tests.support.datasets import TokenStream, make_samples
from tests.support.extracting import extract
from tests.support.fault_judging import find_incomplete
from tests.support.fault_play import ROOT, fresh_disk, play
from tests.support.fault_programs import PROGRAMS
from tests.support.filesystem import CRASHES, Crash, Fault
from tests.support.models import LanguageModel

GROUPS = [[[0, 1], [2]], [[3, 4]], [[7, 5]]]
SAMPLES = [0, 1, 2, 3, 4, 5, 7]


def flip(content: bytes) -> bytes:
    """One bit of the last line."""
    changed = bytearray(content)
    changed[-40] ^= 1
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit of the last line": flip,
    "no last line feed": lambda content: content[:-1],
    "a bit of the second line": lambda content: content.replace(b'"group":0', b'"group":1'),
    "a bit of the first line": lambda content: content.replace(b"rank", b"sank"),
    "only the first line": lambda content: content[: content.index(b"\n") + 1],
    "emptied": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "removed": lambda content: None,
}


@pytest.fixture(params=[None, 20], ids=["one file", "several files"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    limits = None if request.param is None else GroupLimits(own_file_bytes=request.param)
    write_archive(tmp_path / "acts", GROUPS, limits=limits)
    return tmp_path / "acts"


def damage(root: Path, how: str) -> None:
    [journal] = root.glob(f"w-*/{JOURNAL}")
    content = DAMAGES[how](journal.read_bytes())
    if content is None:
        journal.unlink()
    else:
        write(journal, content)


def shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*.safetensors")}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_journal_is_reported_and_can_be_written_anew(root: Path, how: str) -> None:
    before = shards(root)
    damage(root, how)
    archive = open_archive(root)
    lost = set(SAMPLES) - {i for start, stop in archive.ids for i in range(start, stop)}
    problems = [each for each in archive.verify() if each.what == UNLISTED]
    assert lost
    assert problems

    done = repair(root)
    assert {each.why_not for each in done} == {None}
    assert {path for each in done for path in each.paths} == {each.path for each in problems}
    assert lost <= {i for each in done for a, b in each.samples for i in range(a, b)}
    archive = open_archive(root)
    check_values(archive, dict.fromkeys(SAMPLES, 0))
    assert archive.verify() == []
    assert shards(root) == before
    assert repair(root) == []


@pytest.mark.parametrize("how", DAMAGES)
def test_the_next_run_keeps_them_and_says_so(how: str, tmp_path: Path) -> None:
    root, data = tmp_path / "acts", make_samples(5)
    wanted = extract(LanguageModel(), data, root, group_bytes=1)["norm"][:].clone()
    before = set(shards(root).values())
    damage(root, how)
    with pytest.warns(FastcapWarning):
        archive = extract(LanguageModel(), data, root, group_bytes=1)
    assert archive.is_complete
    assert archive["norm"][:].equal(wanted)
    kept = {path.read_bytes() for path in root.glob("w-*/*.safetensors*")}
    assert kept >= before

    assert {each.why_not for each in repair(root)} <= {"their samples are in the archive"}
    assert open_archive(root).verify() == []
    assert {path.read_bytes() for path in root.glob("w-*/*.safetensors*")} == kept


def test_a_folder_is_a_path_and_what_was_repaired_is_named_from_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ArgumentTypeError, match="folder must be a path"):
        repair(3)  # type: ignore[arg-type]
    damage(root, "a bit of the last line")
    monkeypatch.chdir(root.parent)
    assert all(path.is_absolute() for each in repair(root.name) for path in each.paths)
    damage(root, "a bit of the last line")
    done = CliRunner().invoke(make_app(), ["repair", root.name])
    assert done.output.startswith("Adopted w-")


def test_what_was_set_aside_can_be_adopted_later(root: Path) -> None:
    before = shards(root)
    damage(root, "emptied")
    reopen(root, LocalFiles())
    assert shards(root) == {}
    assert open_archive(root).verify() == []
    assert len(repair(root)) == 3
    assert shards(root) == before
    check_values(open_archive(root), dict.fromkeys(SAMPLES, 0))


def test_what_is_not_a_whole_group_is_set_aside(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0]], [[1]]], limits=GroupLimits(own_file_bytes=1))
    first, *_, last = sorted(root.rglob("*.safetensors"))
    damage(root, "emptied")
    first.unlink()
    write(last, last.read_bytes()[:-1])
    outcomes = {each.why_not for each in repair(root)}
    assert len(outcomes) == 2
    assert all(why is not None for why in outcomes)
    assert any("does not hold the streams of meta.json" in str(why) for why in outcomes)
    assert shards(root) == {}
    archive = open_archive(root)
    assert (len(archive), archive.verify()) == (0, [])


def test_shards_of_another_archive_are_not_adopted(root: Path, tmp_path: Path) -> None:
    other = make_meta(batch_size=3)
    object.__setattr__(other, "archive", "another")
    write_archive(tmp_path / "other", GROUPS[:1], meta=other)
    [directory] = root.glob("w-*")
    for path in (tmp_path / "other").rglob("*.safetensors"):
        path.rename(directory / "000009-000.safetensors")
    [found] = repair(root)
    assert str(found.why_not).endswith("is a shard of another archive.")
    assert [path.name for path in found.paths] == ["000009-000.safetensors.orphan"]
    check_values(open_archive(root), dict.fromkeys(SAMPLES, 0))


def test_a_live_writer_is_not_repaired_and_its_commit_is_no_problem(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = Writer(root, make_meta())
    append(writer, [0])
    writer.commit()
    [shard] = root.rglob("*.safetensors")
    (shard.parent / "000001-000.safetensors").write_bytes(shard.read_bytes())
    assert open_archive(root).verify() == []
    assert repair(root) == []
    assert len(list(root.rglob("*.safetensors"))) == 2
    writer.close()


@pytest.mark.parametrize("kind", ["list", "stream"])
@pytest.mark.parametrize("how", ["only the first line", "emptied", "removed"])
def test_a_journal_that_is_lost_during_a_run_is_no_success(
    how: str, kind: str, tmp_path: Path
) -> None:
    root, n_commits = tmp_path / "acts", [0]
    data: Any = make_samples(8) if kind == "list" else TokenStream(8)

    def lose(commit: object) -> None:
        n_commits[0] += 1
        if n_commits[0] == 2:
            damage(root, how)

    with pytest.raises(ArchiveError):
        extract(LanguageModel(), data, root, group_bytes=1, on_commit=lose)
    assert n_commits[0] == 3
    assert len(list(root.rglob("*.safetensors"))) == 3
    with pytest.warns(FastcapWarning):
        assert extract(LanguageModel(), data, root, group_bytes=1).is_complete


def test_the_error_at_the_end_says_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "acts"

    def lose(commit: object) -> None:
        damage(root, "removed")

    with pytest.raises(ArchiveError) as caught:
        extract(LanguageModel(), make_samples(3), root, on_commit=lose)
    assert str(caught.value) == (
        f"{root} has lost samples 0 to 2, which were committed: its files were changed while this "
        "ran, such as a journal that was removed or cut. To have back what is whole: fastcap "
        "repair. To extract what is missing: run the same again."
    )
    assert len(repair(root)) == 1
    assert extract(LanguageModel(), make_samples(3), root).is_complete


def test_the_command_says_what_it_has_done(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0, 1]], [[3]]])
    damage(root, "a bit of the last line")
    run = CliRunner().invoke
    shown = run(make_app(), ["inspect", str(root), "--verify"])
    assert shown.exit_code == 1
    assert "1 whole files that its journal does not name" in shown.output
    assert f"To bring back what is whole and not named: fastcap repair {root}" in shown.output

    [shard] = root.glob("w-*/000001-*")
    done = run(make_app(), ["repair", str(root)])
    assert done.output == f"Adopted {shard.relative_to(root)}, samples 3\n"
    done = run(make_app(), ["repair", str(root)])
    assert done.output == (
        f"{root}: nothing to repair. Journals name every whole file, or it is set aside.\n"
    )
    assert run(make_app(), ["inspect", str(root), "--verify"]).exit_code == 0


@pytest.mark.parametrize("kind", CRASHES)
def test_a_repair_that_dies_anywhere_can_be_done_again(kind: str) -> None:
    program = PROGRAMS[3]
    whole = fresh_disk(program)
    play(program, whole)
    [journal] = [Path(path) for path in whole.image() if path.endswith(JOURNAL)]
    number = whole.find(journal)
    whole.truncate(number, len(whole.file(number).data) - 1)
    whole.sync(number)
    n_operations = 0
    for operation in range(100):
        disk = whole.copy()
        try:
            repair_archive(ROOT, program.process(disk, Fault(operation, kind, seed=operation)))
            break
        except Crash:
            n_operations += 1
        repair_archive(ROOT, program.process(disk))
        assert find_incomplete(program, disk) is None
    assert n_operations > 10
