"""The archive's benchmark, small: what is written is whole, and the plain loop writes as much."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.archive import (
    SAMPLE_BYTES,
    Source,
    layout_of,
    measure,
    memory_child,
    write_archive,
    write_plainly,
)
from fastcap.bench import timing

N_BYTES = 3 * SAMPLE_BYTES


def test_the_plain_loop_writes_files_of_the_same_sizes(tmp_path: Path) -> None:
    model = Source().eval()
    layout = layout_of(write_archive(model, N_BYTES, tmp_path / "archive"))
    write_plainly(model, layout, tmp_path / "plain")
    written = sorted(path.stat().st_size for path in (tmp_path / "plain").iterdir())
    assert written == sorted(layout.file_bytes)
    assert sum(written) >= N_BYTES


def test_every_way_is_timed_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    figures = measure(2, N_BYTES)
    secs = figures["secs"]
    assert isinstance(secs, dict)
    assert {way: len(of_way) for way, of_way in secs.items()} == {
        "plain write": 2,
        "archive": 2,
        "np.savez": 2,
    }


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system cannot reset VmHWM"
)
def test_memory_is_what_a_run_adds_to_the_process() -> None:
    found = memory_child(N_BYTES)
    assert found["bytes"] >= N_BYTES
    assert found["growth_bytes"] >= 0
