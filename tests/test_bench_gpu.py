"""Measuring on a real GPU: every way is right there, and copies are seen to overlap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastcap.bench import make_case, measure_floors, overhead, record_timeline, timing
from fastcap.bench.ways import BASELINE, ways_for

pytestmark = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

WIDTH, N_LAYERS = 1024, 6


def model_of() -> nn.Module:
    halves = (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)
    layers = [nn.Sequential(*(nn.Linear(*sizes) for sizes in halves)) for _ in range(N_LAYERS)]
    return nn.Sequential(*layers).cuda()


@needs_cuda
@pytest.mark.parametrize("positions", [None, -1, slice(0, 8)], ids=str)
def test_every_way_equals_the_oracle(
    positions: int | slice | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    ways = [name for name in ways_for("cuda") if name != BASELINE]
    batches = [torch.randn(4, 16, WIDTH) for _ in range(3)]
    sites = [str(layer) for layer in range(N_LAYERS)]
    measured = overhead(model_of(), batches, ways, sites=sites, rounds=2, positions=positions)
    assert "hook, pinned, side stream" in measured.secs
    assert measured.is_equal, measured.problems


@needs_cuda
def test_a_timeline_has_packs_copies_and_the_forward_between_them() -> None:
    batches = [torch.randn(8, 128, WIDTH) for _ in range(3)]
    timeline, statistics = record_timeline(make_case(model_of(), batches, ["0", "3"]))
    kinds = {span.kind for span in timeline.spans}
    assert kinds >= {"forward", "pack", "copy", "deliver"}
    copied = sum(span.n_bytes for span in timeline.spans if span.kind == "copy")
    assert copied == statistics.copied_bytes * 3 // 4  # without the pass that is left out
    assert timeline.hidden_share() is not None


@needs_cuda
def test_the_link_is_measured() -> None:
    floors = measure_floors("cuda", 64 << 20, rest_secs=None)
    assert floors.link_gb_per_sec is not None
    assert floors.link_gb_per_sec > 0
