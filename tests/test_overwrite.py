"""A directory that holds another run: replaced when asked, or where that run never began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcap
from fastcap.archive.layout import JOURNAL, META
from fastcap.errors import ArchiveConfigError, ArchiveError, ArgumentError

DATA = [{"input_ids": torch.tensor([i, i + 1])} for i in range(6)]


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))


def run(seed: int, folder: Path, data: Any = DATA, **options: Any) -> fastcap.Archive:
    return fastcap.extract(model_of(seed), data, ["1"], folder, batch_size=2, **options)


def expected(seed: int) -> torch.Tensor:
    return torch.cat([model_of(seed)(each["input_ids"][None]) for each in DATA]).detach()


def test_another_run_is_replaced_when_asked(tmp_path: Path) -> None:
    run(0, tmp_path / "a")
    with pytest.raises(ArchiveConfigError, match="overwrite=True"):
        run(1, tmp_path / "a")
    archive = run(1, tmp_path / "a", overwrite=True)
    assert torch.equal(archive["1"][:], expected(1))
    assert archive.verify() == []
    assert len([path for path in archive.path.iterdir() if path.is_dir()]) == 1


def test_the_same_run_is_continued_all_the_same(tmp_path: Path) -> None:
    made = run(0, tmp_path / "a", max_samples=6)
    meta = (tmp_path / "a" / META).read_bytes()
    assert len(run(0, tmp_path / "a", max_samples=6, overwrite=True)) == len(made)
    assert (tmp_path / "a" / META).read_bytes() == meta


def test_values_that_differ_are_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(0, tmp_path / "a")
    with monkeypatch.context() as patch:  # nothing but values tells the runs apart
        patch.setattr("fastcap.extraction.resume.check_config", lambda *_: None)
        with pytest.raises(ArchiveConfigError, match="overwrite=True"):
            run(1, tmp_path / "a")
        archive = run(1, tmp_path / "a", overwrite=True)
    assert torch.equal(archive["1"][:], expected(1))


def test_a_run_that_never_committed_anything_is_in_nobodys_way(tmp_path: Path) -> None:
    writer_dir = empty_start(tmp_path / "a")
    archive = run(1, tmp_path / "a")
    assert torch.equal(archive["1"][:], expected(1))
    assert not writer_dir.exists()


def empty_start(folder: Path) -> Path:
    """What a process leaves that is killed before its first commit."""
    run(0, folder)
    [directory] = [path for path in folder.iterdir() if path.is_dir()]
    for path in directory.iterdir():
        if path.name != JOURNAL:
            path.rename(path.with_name(path.name + ".tmp"))
    first, *_ = (directory / JOURNAL).read_bytes().splitlines(keepends=True)
    (directory / JOURNAL).write_bytes(first)
    return directory


def test_one_committed_sample_is_enough_to_be_in_the_way(tmp_path: Path) -> None:
    def stop(n_done: int, n_expected: int | None) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        run(0, tmp_path / "a", progress=stop)
    with pytest.raises(ArchiveConfigError):
        run(1, tmp_path / "a")
    assert len(run(0, tmp_path / "a")) == 6


def test_what_fastcap_did_not_write_is_not_removed(tmp_path: Path) -> None:
    run(0, tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    [directory] = [path for path in (tmp_path / "a").iterdir() if path.is_dir()]
    (directory / "also mine").write_text("mine")
    with pytest.raises(ArchiveError, match=r"notes\.txt, w-.*/also mine, which fastcap"):
        run(1, tmp_path / "a", overwrite=True)
    assert len(run(0, tmp_path / "a")) == 6


@pytest.mark.parametrize(("is_live", "who"), [(True, "A process"), (None, "another machine may")])
def test_what_somebody_may_write_is_not_removed(
    tmp_path: Path, is_live: bool | None, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(0, tmp_path / "a")
    monkeypatch.setattr("fastcap.archive.recovery._is_live", lambda *_: is_live)
    with pytest.raises(ArchiveError, match=who):
        run(1, tmp_path / "a", overwrite=True)
    monkeypatch.undo()
    assert len(run(0, tmp_path / "a")) == 6


@pytest.mark.parametrize("n_removed", range(3))
def test_a_kill_while_it_is_removed_leaves_what_is_removed_next_time(
    tmp_path: Path, n_removed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(0, tmp_path / "a")
    directory, *_ = [path for path in (tmp_path / "a").iterdir() if path.is_dir()]
    for path in sorted(directory.iterdir())[:n_removed]:
        path.unlink()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", killed)
        with pytest.raises(KeyboardInterrupt):
            run(1, tmp_path / "a", overwrite=True)
    archive = run(1, tmp_path / "a", overwrite=True)
    assert torch.equal(archive["1"][:], expected(1))


def test_several_processes_do_not_remove_each_others_begin(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="overwrite=True is for one process"):
        run(0, tmp_path / "a", world_size=2, overwrite=True)
    assert not (tmp_path / "a").exists()
