"""Timelines: what ran when, on the virtual clock to the second, and on real devices in order."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcap.bench import Span, Timeline, make_case, record_timeline, recording
from fastcap.bench.recording import Recorder, RecordingAccelerator, RecordingTwin
from fastcap.devices.simulated import SimulatedCosts
from fastcap.errors import SaveError
from fastcap.transfer.budget import Budget
from tests.support.devices import LoggedStreams, logged_accelerator
from tests.support.virtual import Load, budget_of, model_of

GB = 1e9
BY_HAND = Load(
    n_passes=3,
    n_layers=1,
    site_bytes=100_000_000,
    forward_secs=0.3,
    launch_secs=0.0,
    budget=Budget(100_000_000, 2, 8),
    costs=SimulatedCosts(
        link_bytes_per_sec=1 * GB,
        copy_latency_secs=0.0,
        memory_bytes_per_sec=1e6 * GB,
        launch_secs=0.0,
        hook_secs=0.0,
        host_bytes_per_sec=1e6 * GB,
    ),
)


def virtual_timeline(load: Load) -> Timeline:
    twin = RecordingTwin(load.costs)
    case = make_case(model_of(load, twin), [torch.zeros(1)] * load.n_passes, load.sites)
    with budget_of(load):
        return record_timeline(case, twin)[0]


def rounded(timeline: Timeline, kind: str) -> list[tuple[float, float]]:
    spans = [span for span in timeline.spans if span.kind == kind]
    return [(round(span.start_secs, 2), round(span.end_secs, 2)) for span in spans]


def test_three_passes_worked_out_by_hand() -> None:
    """Compute takes 0.3 s a pass and a copy 0.1 s; the last copy has nothing to hide behind."""
    timeline = virtual_timeline(BY_HAND)
    assert timeline.clock == "a virtual clock"
    assert rounded(timeline, "forward") == [(0.0, 0.3), (0.3, 0.6), (0.6, 0.9)]
    assert rounded(timeline, "copy") == [(0.3, 0.4), (0.6, 0.7), (0.9, 1.0)]
    assert timeline.hidden_share() == pytest.approx(2 / 3, rel=1e-3)
    assert timeline.busy_secs("copy") == pytest.approx(0.3, rel=1e-3)
    assert {span.n_bytes for span in timeline.spans if span.kind == "copy"} == {100_000_000}


def test_a_link_that_holds_the_model_up_shows_as_a_gap() -> None:
    timeline = virtual_timeline(replace(BY_HAND, forward_secs=0.05))
    assert rounded(timeline, "copy") == [(0.05, 0.15), (0.15, 0.25), (0.25, 0.35)]
    assert timeline.end_secs == pytest.approx(0.35, rel=1e-3)


def test_a_stream_runs_one_thing_at_a_time() -> None:
    timeline = virtual_timeline(replace(BY_HAND, n_layers=4, n_passes=4))
    assert timeline.streams[:2] == ["compute stream", "copy stream"]
    for stream in timeline.streams:
        spans = [span for span in timeline.spans if span.stream == stream]
        for one, following in pairwise(spans):
            assert following.start_secs >= one.end_secs - 1e-9


def test_on_the_cpu_copies_lie_between_parts_of_the_forward() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    batches = [torch.randn(32, 64)] * 2
    timeline, statistics = record_timeline(make_case(model, batches, ["0", "1"]))
    kinds = [span.kind for span in timeline.spans]
    assert kinds == ["forward", "copy", "forward", "copy", "forward"] * 2
    assert timeline.streams == ["model's thread"]
    assert timeline.spans[0].start_secs == 0.0
    assert {s.n_bytes for s in timeline.spans if s.kind == "copy"} == {32 * 64 * 4}
    assert statistics.captures == 2 * (1 + 2)  # the pass that is left out included
    assert timeline.hidden_share() == 0.0


@pytest.mark.parametrize(
    ("staging_bytes", "stream"), [(1 << 25, "host"), (1 << 15, "worker 0")], ids=["small", "large"]
)
def test_on_an_accelerator_packs_copies_and_deliveries_are_stamped(
    staging_bytes: int, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values that are small beside staging are read by the host, others by its workers."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    case = make_case(model, [torch.randn(32, 64)] * 3, ["0", "1"])
    case = replace(case, options={**case.options, "staging_bytes": staging_bytes})
    monkeypatch.setattr(recording, "_open_recording", RecordingAccelerator)
    with logged_accelerator(LoggedStreams()):
        timeline, statistics = record_timeline(case)
    kinds = Counter(span.kind for span in timeline.spans)
    assert kinds["pack"] == 6
    assert kinds["copy"] >= 3
    assert kinds["forward"] == 3 * 3  # before, between and after two packs
    assert kinds["deliver"] >= 6
    assert {"compute stream", "copy stream", stream} <= set(timeline.streams)
    assert statistics.captures == 2 * 4  # the pass that is left out included


def test_a_copy_is_stamped_after_what_it_waits_for() -> None:
    streams = LoggedStreams()
    with logged_accelerator(streams):
        device = RecordingAccelerator(torch.device("cpu"), Recorder())
        staging, slot, packed, landed = device.staging(64), device.host(64), *_two(device)
        streams.log.clear()
        device.copy(staging, slot, 64, after=[packed], then=[landed])
    assert streams.log == [
        "copy stream 1 waits for event 2",
        "event 4 on copy stream 1",  # its start
        "enter copy stream 1",
        "leave copy stream 1",
        "event 3 on copy stream 1",
        "event 5 on copy stream 1",  # its end
    ]


def _two(device: RecordingAccelerator) -> tuple[object, object]:
    return device.event(), device.event()


def test_the_trace_is_json_in_microseconds_with_a_name_for_each_stream(tmp_path: Path) -> None:
    spans = (
        Span(0.0, 0.25, "compute stream", "forward"),
        Span(0.25, 0.5, "copy stream", "copy", 64),
    )
    path = tmp_path / "new" / "trace.json"
    Timeline(spans, "this machine").write_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {1: "compute stream", 2: "copy stream"}
    copy = events[-1]
    assert (copy["tid"], copy["ts"], copy["dur"]) == (2, 250_000.0, 250_000.0)
    assert copy["args"] == {"bytes": 64}


def test_a_trace_that_cannot_be_written_says_where_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Cannot write .*file/trace\.json: "):
        Timeline((), "this machine").write_trace(tmp_path / "file" / "trace.json")


def test_without_copies_nothing_is_hidden() -> None:
    assert Timeline((), "this machine").hidden_share() is None


def test_in_the_trace_nothing_overlaps_what_begins_at_its_end() -> None:
    ends = [0.0, 4e-10, 1.1e-9, 1.6e-9, 2.4e-9, 1.0000000006, 1.0000000014]
    spans = tuple(Span(a, b, "stream", "forward") for a, b in pairwise(ends))
    events = [e for e in Timeline(spans, "real").trace()["traceEvents"] if e["ph"] == "X"]
    for one, after in pairwise(events):
        assert round(1e3 * (one["ts"] + one["dur"])) == round(1e3 * after["ts"])
