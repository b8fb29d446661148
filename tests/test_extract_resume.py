"""`fastcap.extract` called again: after errors, kills, losses, and by several processes."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL
from fastcap.archive.reader import Archive
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.errors import FastcapWarning
from tests.support.archives import write
from tests.support.datasets import TokenStream, make_samples
from tests.support.extracting import check, extract, groups_of, masked_samples
from tests.support.models import VOCABULARY, WIDTH, LanguageModel, hooks_on
from tests.support.runs import running_on

SITES = ["first", "second"]
SAMPLES = make_samples(8)  # batches of 3, 3 and 2
CHECKED = 3  # samples of the batch that is run again before an archive is continued


class Fragile(nn.Module):
    """Raises `error` between its two sites, in one of its passes; counts the samples it has seen.

    What it raises is not part of what it is: its configuration stays the same.
    """

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            self.first = nn.Embedding(VOCABULARY, WIDTH)
            self.second = nn.Linear(WIDTH, WIDTH)
        self.error: BaseException | None = None
        self.at_pass = 0
        self.seen: list[int] = []
        self.before_pass: Callable[[], object] = int

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        self.before_pass()
        acts = self.first(input_ids)
        if self.error is not None and len(self.seen) == self.at_pass:
            raise self.error
        self.seen.append(len(input_ids))
        output: Tensor = self.second(acts)
        return output

    def fail(self, error: BaseException | None, at_pass: int = 0) -> None:
        self.error, self.at_pass, self.seen = error, at_pass, []


def run(model: Fragile, root: Path, dataset: Any = SAMPLES, **options: Any) -> Archive:
    return extract(model, dataset, root, sites=SITES, group_bytes=1, **options)


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.tmp"))


@pytest.mark.parametrize("place", ["cpu", "late", "random"])
@pytest.mark.parametrize("at_pass", [0, 1, 2])
def test_an_error_in_any_batch_keeps_those_before_it(
    at_pass: int, place: str, tmp_path: Path
) -> None:
    root, model = tmp_path / "acts", Fragile()
    device = None if place == "cpu" else SimulatedDevice(Schedule(place, seed=2))
    with running_on(device):
        model.fail(RuntimeError("in the middle"), at_pass)
        with pytest.raises(RuntimeError) as caught:
            run(model, root)
        assert caught.value is model.error
        assert hooks_on(model) == 0
        if at_pass:
            assert fastcap.open_archive(root).ids == [(0, 3 * at_pass)]
            assert leftovers(root) == []
        model.fail(None)
        archive = run(model, root)
    assert model.seen == [CHECKED][:at_pass] + [3, 3, 2][at_pass:]
    check(archive, model, SAMPLES, 3)


@pytest.mark.parametrize("at_pass", [0, 1, 2])
def test_an_interrupt_inside_a_pass_ends_at_once_and_loses_no_commit(
    at_pass: int, tmp_path: Path
) -> None:
    root, model = tmp_path / "acts", Fragile()
    model.fail(KeyboardInterrupt(), at_pass)
    commits: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        run(model, root, on_commit=commits.append)
    n_saved = len(fastcap.open_archive(root)) if commits else 0
    assert n_saved == sum(commit.n_samples for commit in commits)
    assert leftovers(root) == []

    model.fail(None)
    archive = run(model, root)
    assert sum(model.seen) == 8 - n_saved + (CHECKED if n_saved else 0)
    check(archive, model, SAMPLES, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_behind_the_pass_under_way(
    number: signal.Signals, tmp_path: Path
) -> None:
    root, model = tmp_path / "acts", Fragile()
    raised: list[int] = []

    def once() -> None:
        if len(model.seen) == 1 and not raised:
            raised.append(number)
            signal.raise_signal(number)

    model.before_pass = once
    text = (
        f"Stopped by {number.name}: 6 of 8 samples are saved in {str(root)!r}. To go on with the "
        "rest, run the same again."
    )
    if number is signal.SIGINT:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(model, root)
        assert str(caught.value) == text
    else:
        with (
            pytest.warns(FastcapWarning) as said,
            pytest.raises(SystemExit) as exited,
        ):
            run(model, root)
        assert exited.value.code == 128 + number
        assert [str(warning.message) for warning in said] == [text]
    assert fastcap.open_archive(root).ids == [(0, 6)]

    model.fail(None)
    archive = run(model, root)
    assert model.seen == [CHECKED, 2]
    check(archive, model, SAMPLES, 3)


def test_a_complete_archive_is_returned_without_a_pass_where_nothing_is_compared(
    tmp_path: Path,
) -> None:
    root, model = tmp_path / "acts", Fragile()
    run(model, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    model.fail(RuntimeError("nobody calls it"))
    archive = run(model, root, check="fingerprint")
    model.fail(None)
    check(archive, model, SAMPLES, 3)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_complete_archive_is_returned_after_one_pass_that_compares_values(tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    run(model, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    model.fail(None)
    assert run(model, root).is_complete
    assert model.seen == [CHECKED]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2), (0, 1, 2)], ids=str)
def test_samples_of_a_shard_that_was_deleted_are_made_again(
    lost: tuple[int, ...], tmp_path: Path
) -> None:
    root, model = tmp_path / "acts", Fragile()
    run(model, root)
    shards = sorted(root.rglob("*.safetensors"))
    for number in lost:
        shards[number].unlink()
    assert len(fastcap.open_archive(root).damages) == len(lost)
    model.fail(None)
    archive = run(model, root)
    compared = [size for number, size in enumerate([3, 3, 2]) if number not in lost][:1]
    assert model.seen == compared + [[3, 3, 2][number] for number in lost]
    assert archive.ids == [(0, 8)]
    assert len(archive.damages) == len(lost)
    assert len(archive.verify()) == len(lost)  # what is gone stays reported
    wanted = fastcap.extract_representations(model, SAMPLES, SITES, "cpu", batch_size=3)
    for site in SITES:
        assert torch.equal(archive[site][:], wanted[site])


def test_samples_of_a_journal_that_was_damaged_are_made_again(tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    run(model, root)
    [journal] = root.glob(f"w-*/{JOURNAL}")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"samples", b"simples")
    write(journal, b"".join(lines))
    shards = set(root.rglob("*.safetensors"))
    model.fail(None)
    with pytest.warns(FastcapWarning, match="is not as it was written, and valid lines follow"):
        archive = run(model, root)
    assert model.seen == [CHECKED, 3, 2]
    assert set(root.rglob("*.safetensors")) > shards
    assert archive.ids == [(0, 8)]


@pytest.mark.parametrize("kind", ["list", "stream"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_the_batches(kind: str, world_size: int, tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    samples = make_samples(14)
    dataset: Any = samples if kind == "list" else TokenStream(14)
    order = list(range(world_size))
    random.Random(world_size).shuffle(order)
    for rank in order:
        model.fail(None)
        archive = run(model, root, dataset, rank=rank, world_size=world_size)
        assert sum(model.seen) == sum(
            len(range(14)[3 * b : 3 * b + 3]) for b in range(rank, 5, world_size)
        ) + (0 if rank == order[0] else CHECKED)
    check(archive, model, samples, 3)
    assert len(archive.writers) == world_size
    assert {writer.journal.info.rank for writer in archive.writers if writer.journal.info} == set(
        order
    )


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_the_number_of_processes_may_change(before: int, after: int, tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    samples = make_samples(14)
    model.fail(RuntimeError("in the middle"), at_pass=1)
    with pytest.raises(RuntimeError):
        run(model, root, samples, rank=0, world_size=before)
    n_saved = 3
    assert len(fastcap.open_archive(root)) == n_saved
    n_seen = 0
    for rank in range(after):
        model.fail(None)
        archive = run(model, root, samples, rank=rank, world_size=after)
        n_seen += sum(model.seen)
    assert n_seen == 14 - n_saved + after * CHECKED
    check(archive, model, samples, 3)


def test_a_rank_without_a_batch_joins_an_archive_and_does_not_begin_one(tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    with pytest.raises(fastcap.FastcapError) as caught:
        run(model, root, rank=3, world_size=4)
    assert str(caught.value) == (
        "There is no batch for rank 3 of 4: the data has too few samples. Use fewer processes, a "
        "smaller batch_size or more data."
    )
    assert not root.exists()
    run(model, root, rank=0, world_size=4)
    assert len(run(model, root, rank=3, world_size=4)) == 3


@pytest.mark.parametrize("seed", range(6))
def test_ragged_values_and_labels_survive_any_sequence_of_errors(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    root, model = tmp_path / "acts", Fragile()
    samples = masked_samples(13)
    options: dict[str, Any] = {
        "positions": "unpadded",
        "model_inputs": ["attention_mask"],
        "columns": ["text", "y"],
        "pinned_bytes": draw.choice([256, 5000, 1 << 20]),
    }
    for _ in range(20):
        model.fail(draw.choice([RuntimeError("no"), KeyboardInterrupt()]), draw.randrange(3))
        with running_on(SimulatedDevice(Schedule("random", seed=draw.randrange(100)))):
            try:
                run(model, root, samples, **options)
                break
            except (RuntimeError, KeyboardInterrupt):
                continue
    model.fail(None)
    archive = run(model, root, samples, **options)
    check(archive, model, samples, 3, positions="unpadded")
    assert archive["label:text"][:] == [sample["text"] for sample in samples]
    assert sum(stop - start for group in groups_of(archive) for start, stop in group) == 13


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    root, model = tmp_path / "acts", Fragile()
    model.fail(RuntimeError("in the middle"), at_pass=1)
    with pytest.raises(RuntimeError):
        run(model, root)
    [directory] = root.glob("w-*")
    left = directory / "000001-000.safetensors.tmp"
    left.write_bytes(b"half")
    model.fail(None)
    archive = run(model, root)
    assert not left.exists()
    assert Archive(root, LocalFiles()).verify() == []
    check(archive, model, SAMPLES, 3)


def test_another_model_of_the_same_kind_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    extract(LanguageModel(seed=1), SAMPLES, root, max_samples=3)
    with pytest.raises(fastcap.FastcapError, match="holds another run"):
        extract(LanguageModel(seed=2), SAMPLES, root, max_samples=3)
