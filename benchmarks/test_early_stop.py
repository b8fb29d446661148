"""Ending passes early: the same values, and the floor of the saving."""

from __future__ import annotations

import pytest
import torch

from benchmarks.early_stop import SHAPE, SITE, make_batches, measure, run, share_before
from benchmarks.models import build_model
from fastcap.bench import timing


def test_both_ways_give_the_same_values() -> None:
    model, batches = build_model(SHAPE, torch.float32, "cpu"), make_batches(2, (1, 8))
    whole, ended = (run(model, batches, stop)[1] for stop in (False, True))
    assert len(whole) == 2
    assert all(map(torch.equal, whole, ended))


def test_the_floor_is_about_half_for_a_site_in_the_middle() -> None:
    share = share_before(build_model(SHAPE, torch.float32, "cpu"))
    assert SITE == "layers.5"
    assert 0.45 < share < 0.5


def test_figures_name_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    figures = measure(1, make_batches(2, (1, 8)))
    assert figures["site"] == SITE
    assert figures["rounds"] == 1
