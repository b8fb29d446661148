"""Floors: which are measured, what they are of, and that nothing of them stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastcap.bench import Floors, describe_machine, measure_floors, predict
from fastcap.bench.floors import floor_secs, write_rates
from fastcap.errors import SaveError

SOURCE = torch.arange(1 << 12, dtype=torch.int64).view(torch.uint8)


def test_what_is_not_asked_for_is_not_measured(tmp_path: Path) -> None:
    plain = measure_floors("cpu", 1 << 16, rest_secs=None, n_repeats=1)
    assert plain.cold_gb_per_sec is None
    assert plain.link_gb_per_sec is None
    assert plain.disk_gb_per_sec is None
    whole = measure_floors("cpu", 1 << 16, rest_secs=0.0, folder=tmp_path, n_repeats=1)
    assert whole.cold_gb_per_sec is not None
    assert whole.disk_gb_per_sec is not None
    assert not list(tmp_path.iterdir())


def test_every_byte_is_written_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []

    def fsync(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        synced.append(os.read(descriptor, 1 << 20))

    monkeypatch.setattr("fastcap.bench.floors.WRITE_BYTES", 1000)
    monkeypatch.setattr("fastcap.bench.floors.os.fsync", fsync)
    rates = write_rates(SOURCE, tmp_path, n_repeats=2)
    assert synced == [SOURCE.numpy().tobytes()] * 2
    assert all(rate > 0 for rate in rates)


def test_short_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, bytearray()

    def short(descriptor: int, data: memoryview) -> int:
        written.extend(data[:7])
        return write(descriptor, data[:7])

    monkeypatch.setattr("fastcap.bench.floors.os.write", short)
    write_rates(SOURCE[:100], tmp_path, n_repeats=1)
    assert bytes(written) == SOURCE[:100].numpy().tobytes()


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastcap.bench.floors.os.write", full)
    text = r"Cannot write a file of 32.8 kB in .*: No space left on device\. Name another folder"
    with pytest.raises(SaveError, match=text):
        write_rates(SOURCE, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rested_memory_is_the_floor_where_it_was_measured() -> None:
    assert Floors(8.0, 4.0, 2.0).into_result_gb_per_sec == 4.0
    assert Floors(8.0, 4.0, 2.0, 1.0).into_result_gb_per_sec == 1.0
    assert predict(10**9, Floors(8.0, 4.0, 2.0, 1.0), 1.0).what.endswith("cold memory")


def test_every_floor_that_was_measured_has_its_seconds() -> None:
    secs = floor_secs(10**9, Floors(8.0, 4.0, 2.0, 1.0, 50.0, 0.5), 3.0)
    assert secs == {
        "forward": 3.0,
        "link": 0.02,
        "copy into cold memory": 1.0,
        "copy into fresh memory": 0.25,
        "copy into warm memory": 0.125,
        "write to disk": 2.0,
    }


def test_a_machine_without_an_accelerator_is_named_after_its_processor() -> None:
    machine = describe_machine("cpu")
    assert machine.gpu is None
    assert machine.tag.endswith("cores")
    assert machine.n_cores >= 1


def test_a_folder_that_cannot_be_written_in_says_so(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"in .*nowhere, which measures its disk: No such file"):
        measure_floors("cpu", 1 << 10, rest_secs=None, folder=tmp_path / "nowhere", n_repeats=1)
