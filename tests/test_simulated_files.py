"""The simulated disk loses what it may lose and keeps what it must keep.

A simulator that cannot lose anything proves nothing about what is written to it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastcap.archive.files import Files, LocalFiles
from tests.support.disk import BLOCK_BYTES, Loss
from tests.support.filesystem import ERRORS, Crash, Effect, Fault, SimulatedFiles, crash

ROOT = Path("/data")
A, B = ROOT / "a", ROOT / "b"
SEEDS = range(60)


def started() -> SimulatedFiles:
    """A disk with an empty directory that is safe."""
    files = SimulatedFiles()
    files.make_dir(ROOT)
    files.sync_dir(Path("/"))
    return files


def write(files: Files, path: Path, content: bytes, is_synced: bool = True) -> None:
    file = files.create(path)
    offset = 0
    while offset < len(content):
        offset += file.write_at(offset, memoryview(content)[offset:])
    if is_synced:
        file.sync()
    file.close()


def after_power(files: SimulatedFiles, seed: int) -> dict[str, bytes | None]:
    disk = files.disk.copy()
    disk.cut_power(Loss(seed))
    return disk.image()


def outcomes(files: SimulatedFiles, path: Path) -> set[bytes | None]:
    """What the path holds after a power cut, under every seed; `None` where it is gone."""
    return {after_power(files, seed).get(str(path)) for seed in SEEDS}


# What is synced stays


def test_a_synced_file_with_a_synced_name_survives_every_power_cut() -> None:
    files = started()
    write(files, A, b"x" * 1300)
    files.sync_dir(ROOT)
    assert outcomes(files, A) == {b"x" * 1300}


def test_synced_bytes_survive_a_lost_append_to_their_block() -> None:
    files = started()
    file = files.create(A)
    file.write_at(0, memoryview(b"x" * 100))
    file.sync()
    files.sync_dir(ROOT)
    file.write_at(100, memoryview(b"y" * 100))
    found = outcomes(files, A)
    assert all(content is not None and content.startswith(b"x" * 100) for content in found)
    assert {b"x" * 100, b"x" * 100 + b"y" * 100, b"x" * 100 + bytes(100)} <= found


# What is not synced may be lost, in every way


def test_without_a_sync_data_are_lost_or_torn_under_some_seed() -> None:
    files = started()
    content = bytes([1]) * BLOCK_BYTES + bytes([2]) * BLOCK_BYTES
    write(files, A, content, is_synced=False)
    files.sync_dir(ROOT)
    found = outcomes(files, A)
    first, second = content[:BLOCK_BYTES], content[BLOCK_BYTES:]
    nothing = bytes(BLOCK_BYTES)
    assert {content, b"", first + nothing, nothing + second, nothing + nothing} <= found
    assert any(c and 0 < c.count(1) < BLOCK_BYTES for c in found), "no block is ever torn"


def test_without_a_sync_of_the_directory_a_name_is_lost_under_some_seed() -> None:
    files = started()
    write(files, A, b"x")
    assert outcomes(files, A) == {b"x", None}


def test_names_are_lost_independently() -> None:
    files = started()
    write(files, A, b"x")
    write(files, B, b"y")
    kept = {tuple(sorted(after_power(files, seed))) for seed in SEEDS}
    both = {("/data", "/data/a", "/data/b"), ("/data", "/data/a"), ("/data", "/data/b")}
    assert kept == both | {("/data",)}


def test_a_rename_is_whole() -> None:
    files = started()
    write(files, A, b"x")
    files.sync_dir(ROOT)
    files.rename(A, B)
    assert {tuple(after_power(files, seed)) for seed in SEEDS} == {
        ("/data", "/data/a"),
        ("/data", "/data/b"),
    }
    files.sync_dir(ROOT)
    assert outcomes(files, B) == {b"x"}
    assert outcomes(files, A) == {None}


def test_a_name_may_be_safe_before_its_bytes() -> None:
    files = started()
    write(files, A, b"x" * 600, is_synced=False)
    files.rename(A, B)
    files.sync_dir(ROOT)
    assert {b"", bytes(600), b"x" * 600} <= outcomes(files, B)


def test_a_removed_name_may_come_back() -> None:
    files = started()
    write(files, A, b"x")
    files.sync_dir(ROOT)
    files.remove(A)
    assert outcomes(files, A) == {b"x", None}


def test_publishing_is_two_steps_and_its_target_is_exclusive() -> None:
    files = started()
    write(files, A, b"x")
    files.sync_dir(ROOT)
    files.publish(A, B)
    kept = {tuple(after_power(files, seed)) for seed in SEEDS}
    assert ("/data", "/data/a", "/data/b") in kept
    assert ("/data", "/data/a") in kept
    write(files, A, b"y")
    with pytest.raises(FileExistsError):
        files.publish(A, B)


def test_what_was_overwritten_may_be_any_of_its_versions() -> None:
    files = started()
    file = files.create(A)
    for value in (b"1", b"2", b"3"):
        file.write_at(0, memoryview(value * 10))
    files.sync_dir(ROOT)
    assert {b"1" * 10, b"2" * 10, b"3" * 10} <= outcomes(files, A)


# Syncs that fail


def test_after_a_failed_sync_the_next_one_is_silent_and_data_are_lost() -> None:
    lost = 0
    for seed in SEEDS:
        files = started()
        file = files.create(A)
        file.write_at(0, memoryview(b"x" * 100))
        files.sync_dir(ROOT)
        files.fault = Fault(files.n_operations, "EIO", seed)
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
        files.fault = None
        file.sync()
        assert file.read_at(0, 100) == b"x" * 100, "the cache still has it"
        lost += outcomes(files, A) != {b"x" * 100}
        files.disk.evict()
        assert (file.read_at(0, 100) != b"x" * 100) == (outcomes(files, A) != {b"x" * 100})
    assert 0 < lost < len(SEEDS)


def test_settling_shows_what_a_failed_sync_has_lost() -> None:
    found = set()
    for seed in SEEDS:
        files = started()
        file = files.create(A)
        file.write_at(0, memoryview(b"x" * 100))
        files.sync_dir(ROOT)
        files.fault = Fault(files.n_operations, "EIO", seed)
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
        files.fault = None
        files.settle(A)
        content = files.read(A, 100)
        assert outcomes(files, A) == {content}
        found.add(content)
    assert found == {bytes(100), b"x" * 100}


def test_settling_syncs_what_another_process_wrote() -> None:
    files = started()
    write(files, A, b"x" * 700, is_synced=False)
    files.sync_dir(ROOT)
    SimulatedFiles(files.disk).settle(A)
    assert outcomes(files, A) == {b"x" * 700}


def test_writing_again_after_a_failed_sync_makes_it_safe() -> None:
    for seed in SEEDS:
        files = started()
        file = files.create(A)
        file.write_at(0, memoryview(b"x" * 100))
        files.sync_dir(ROOT)
        files.fault = Fault(files.n_operations, "EIO", seed)
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
        files.fault = None
        file.write_at(0, memoryview(b"x" * 100))
        file.sync()
        assert outcomes(files, A) == {b"x" * 100}


def test_a_failed_close_loses_what_was_not_synced() -> None:
    found = set()
    for seed in SEEDS:
        files = started()
        file = files.create(A)
        file.write_at(0, memoryview(b"x" * 100))
        files.sync_dir(ROOT)
        files.fault = Fault(files.n_operations, "EDQUOT", seed)
        with pytest.raises(OSError, match="quota"):
            file.close()
        files.disk.evict()
        found.add(files.disk.image()[str(A)])
    assert found == {bytes(100), b"x" * 100}


# Errors and short writes


CALLS: dict[str, Callable[[SimulatedFiles], object]] = {
    "make_dir": lambda files: files.make_dir(ROOT / "new"),
    "create": lambda files: files.create(ROOT / "new"),
    "rename": lambda files: files.rename(A, B),
    "publish": lambda files: files.publish(A, B),
    "remove": lambda files: files.remove(A),
    "protect": lambda files: files.protect(A),
    "sync_dir": lambda files: files.sync_dir(ROOT),
    "settle": lambda files: files.settle(A),
    "is_dir": lambda files: files.is_dir(A),
    "entries": lambda files: files.entries(ROOT),
    "size": lambda files: files.size(A),
    "read": lambda files: files.read(A, 10),
    "blocks": lambda files: list(files.blocks(A)),
    "tensors": lambda files: files.tensors(A),
    "is_locked": lambda files: files.is_locked(A),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", CALLS)
def test_every_call_can_fail(name: str, kind: str) -> None:
    files = started()
    write(files, A, b"x")
    files.fault = Fault(files.n_operations, kind)
    with pytest.raises(OSError, match=str(ROOT)) as caught:
        CALLS[name](files)
    assert caught.value.errno == getattr(errno, kind)
    files.fault = None
    if "/data/a" in files.disk.image():  # it may have been done all the same
        assert files.read(A, 10) == b"x"


def test_a_call_that_fails_may_have_been_carried_out() -> None:
    done = set()
    for seed in SEEDS:
        files = started()
        write(files, A, b"x")
        files.fault = Fault(files.n_operations, "ESTALE", seed)
        with pytest.raises(OSError, match="Stale"):
            files.rename(A, B)
        done.add("/data/b" in files.disk.image())
    assert done == {False, True}


def test_a_full_disk_stays_full_and_can_still_be_tidied() -> None:
    files = started()
    write(files, A, b"x")
    files.fault = Fault(files.n_operations, "ENOSPC", is_lasting=True)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            files.create(B)
    files.remove(A)


def test_a_short_write_says_how_much_it_wrote() -> None:
    written = set()
    for seed in SEEDS:
        files = started()
        files.fault = Fault(files.n_operations + 1, "short", seed)
        file = files.create(A)
        n_written = file.write_at(0, memoryview(b"x" * 10))
        assert files.size(A) == n_written
        written.add(n_written)
        assert file.write_at(n_written, memoryview(b"y" * 10)) == 10
    assert written == set(range(1, 11))


# Crashes


@pytest.mark.parametrize("kind", ["kill", "power"])
def test_a_dead_process_does_nothing_more(kind: str) -> None:
    files = started()
    file = files.create(A)
    files.fault = Fault(files.n_operations, kind)
    with pytest.raises(Crash):
        file.write_at(0, memoryview(b"x"))
    before = files.disk.image()
    for call in CALLS.values():
        with pytest.raises(Crash):
            call(files)
    for again in (file.sync, file.close):
        with pytest.raises(Crash):
            again()
    assert files.disk.image() == before


def test_a_killed_process_loses_its_locks_and_nothing_else() -> None:
    files = started()
    file = files.create(A)
    file.lock()
    file.write_at(0, memoryview(b"x" * 600))
    other = SimulatedFiles(files.disk)
    assert other.is_locked(A)
    files.kill()
    assert other.is_locked(A) is False
    assert other.read(A, 1000) == b"x" * 600


def test_a_kill_stops_a_write_anywhere() -> None:
    files = started()
    file = files.create(A)
    effect = Effect("write", (files.disk.find(A), 0, b"x" * 4))
    lengths = {
        len(crash(files.disk, effect, "kill", seed).image()["/data/a"] or b"")
        for seed in range(200)
    }
    assert lengths == {0, 1, 2, 3, 4}
    assert files.size(A) == 0, "the disk itself is as it was"
    file.close()


def test_a_power_cut_is_a_new_start_of_the_machine() -> None:
    files = started()
    before = files.machine()
    files.disk.cut_power(Loss(0))
    assert files.machine() != before


def test_closing_gives_the_lock_back_even_where_it_fails() -> None:
    files = started()
    file = files.create(A)
    file.lock()
    second = SimulatedFiles(files.disk)
    assert second.is_locked(A)
    files.fault = Fault(files.n_operations, "EIO")
    with pytest.raises(OSError, match="Input/output"):
        file.close()
    assert second.is_locked(A) is False
    file.close()


def test_two_disks_share_nothing_after_a_copy() -> None:
    files = started()
    file = files.create(A)
    file.write_at(0, memoryview(b"x"))
    copied = files.disk.copy()
    file.write_at(1, memoryview(b"y"))
    files.rename(A, B)
    assert copied.image() == {"/data": None, "/data/a": b"x"}


# It is the same seam as the real one


def tell(act: Callable[[], object]) -> object:
    """What a call gives, or the class of its error."""
    try:
        return act()
    except OSError as error:
        return type(error)


def play(files: Files, root: Path) -> list[object]:
    """Calls whose answers must be the same on every file system."""
    a, b, folder = root / "a", root / "b", root / "folder"
    shard = safetensors.torch.save({"t": torch.arange(3)})
    write(files, a, shard)
    files.make_dir(folder)
    file = files.create(folder / "c")
    file.write_at(5, memoryview(b"five"))
    said: list[object] = [file.read_at(0, 20), file.read_at(7, 1), files.size(folder / "c")]
    file.truncate(6)
    file.truncate(8)
    file.behind(8)
    file.lock()
    said += [file.read_at(0, 20), files.is_locked(folder / "c")]
    file.close()
    file.close()
    said += [files.is_locked(folder / "c"), files.entries(root), files.read(a, 8) == shard[:8]]
    said.append(b"".join(bytes(block) for block in files.blocks(a)) == shard)
    said.append(files.tensors(a)["t"].tolist())
    files.settle(a)
    said += [files.read(a, 1000) == shard, files.is_dir(folder), files.is_dir(a)]
    files.protect(a)
    files.rename(folder / "c", folder / "d")
    files.publish(folder / "d", b)
    files.sync_dir(root)
    said += [files.entries(folder), files.entries(root)]
    said += [tell(lambda: files.make_dir(folder)), tell(lambda: files.make_dir(root / "x" / "y"))]
    said += [tell(lambda: files.create(b)), tell(lambda: files.create(root / "x" / "y"))]
    said += [tell(lambda: files.read(root / "x", 1)), tell(lambda: files.size(folder))]
    said += [files.is_dir(root / "x"), tell(lambda: files.settle(root / "x"))]
    said += [tell(lambda: files.remove(root / "x")), tell(lambda: files.read(folder, 1))]
    said += [
        tell(lambda: files.entries(root / "x")),
        tell(lambda: files.rename(a, root / "x" / "y")),
    ]
    said += [
        tell(lambda: files.is_locked(root / "x")),
        tell(lambda: list(files.blocks(root / "x"))),
    ]
    files.remove(b)
    return [*said, files.entries(root)]


def test_it_answers_as_the_real_file_system_does(tmp_path: Path) -> None:
    real = tmp_path / "data"
    real.mkdir()
    assert play(started(), ROOT) == play(LocalFiles(), real)
