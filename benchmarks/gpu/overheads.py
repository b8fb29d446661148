"""Figures that the list of micro-benchmarks asks of the grid and of its models."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

import fastcap
from benchmarks.gpu.cells import ALL, Cell
from benchmarks.gpu.destinations import ASYNC_HOOK, HOOK, SLOTS
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.subjects import LLAMA, Built, Subject
from benchmarks.gpu.toolbox import Gpu


def overhead_figures(cells: Sequence[Cell], subject: Subject) -> Iterator[Figure]:
    """B15 for the large model, B16 for the small one.

    Raises:
        UnavailableError: The cells were not measured.
    """
    found = {
        cell.destination: cell
        for cell in cells
        if cell.group.subject.name == subject.name and cell.group.picked is ALL and cell.is_measured
    }
    if SLOTS not in found:
        raise UnavailableError(f"{subject.name}, {ALL.name}, {SLOTS} was not measured")
    of_slots = found[SLOTS]
    bare_ms = 1e3 * statistics.median(of_slots.hookless_secs) / of_slots.n_passes
    if subject.name == LLAMA.name:
        yield Figure("without capture", bare_ms, "ms", Range(250, 330))
        predicted = {HOOK: Range(270, 700), ASYNC_HOOK: Range(40, 80), SLOTS: Range(2, 6)}
        for name, expected in predicted.items():
            if name in found:
                yield Figure(f"{name} adds", 1e3 * found[name].pass_secs - bare_ms, "ms", expected)
        return
    assert of_slots.terms is not None
    yield Figure("without capture", bare_ms, "ms")
    yield Figure("slots, of that", of_slots.ratio.mean, "x", Range(1.05, 1.15))
    link_ms = 1e3 * of_slots.terms.secs["link"]
    yield Figure("link, of that", link_ms / bare_ms, "x", Range(0.85, 0.95))


@torch.no_grad()
def decode(gpu: Gpu, built: Built, n_steps: int = 50, n_rounds: int = 5) -> Iterator[Figure]:
    """B17: passes of one token, with a hook on every block."""
    ids = built.batches[0]["input_ids"][:, :1].to(gpu.device)
    model: nn.Module = built.model

    def step_secs(run: Callable[[], object]) -> float:
        gpu.synchronise()
        started = time.perf_counter()
        for _ in range(n_steps):
            run()
        gpu.synchronise()
        return (time.perf_counter() - started) / n_steps

    added, bare = [], []
    for _ in range(n_rounds):
        bare.append(step_secs(lambda: model(ids)))
        with fastcap.ActivationStore(model, built.sites) as store:
            model(ids)
            model(ids)
            added.append(step_secs(lambda: model(ids)) - bare[-1])
            assert len(store.activations) == len(built.sites)
    yield Figure("without capture", 1e3 * statistics.median(bare), "ms per step")
    yield Figure("fastcap adds", 1e3 * statistics.median(added), "ms per step", Range(0.3, 0.4))
