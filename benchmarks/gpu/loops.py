"""Loops as people write them: decoding with a KV cache, batches of many lengths, compiled models.

Ways take turns, and each is held against the baseline of its round. Every way's values are compared
with the oracle's in a run of their own, before the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastcap
from benchmarks.gpu.grid import HOOK
from benchmarks.gpu.report import NONE, Figure, UnavailableError, of_ratio
from benchmarks.gpu.subjects import DTYPE, LLAMA, Built, is_from_transformers, tiny
from benchmarks.gpu.toolbox import Gpu, Sizes
from benchmarks.models import build_model
from benchmarks.workloads import blocks
from fastcap import reference
from fastcap.bench import Case, make_case, paired_ratio
from fastcap.bench.case import Values
from fastcap.bench.equality import wrong_sites
from fastcap.bench.timing import measure_rounds
from fastcap.bench.ways import BASELINE, attach_hooks, baseline, lent, stored, streamed
from fastcap.model.sites import BoundSite, bind_sites
from fastcap.reference import ReferenceStore


def in_turns(
    runs: Mapping[str, Callable[[], float]], unit_secs: str, n_rounds: int
) -> Iterator[Figure]:
    """Rounds of every run, which returns its own seconds; the baseline is the first of them."""
    secs = measure_rounds(
        list(runs),
        lambda order: {name: (runs[name](), None) for name in order},
        n_rounds,
        lambda *_: None,
    )
    base, *others = secs
    for name in secs:
        yield Figure(name, 1e3 * statistics.median(secs[name]), f"ms per {unit_secs}")
    for name in others:
        yield of_ratio(f"{name}, {base} = 1", paired_ratio(secs[name], secs[base]))


def n_wrong(expected: Iterable[Values], found: Iterable[Values]) -> int:
    """How many sites' values differ, batch by batch; one that is missing does, too."""
    return sum(len(wrong_sites(*both)) for both in zip(expected, found, strict=True))


# Decoding

Steps = Callable[[Callable[[], object]], float]
"""Decodes, calls what it is given after each step, and returns the seconds of one step."""


@torch.no_grad()
def decode(gpu: Gpu, built: Built, sizes: Sizes) -> Iterator[Figure]:
    """Steps of one token with a KV cache, every block captured."""
    if not is_from_transformers(built.model):
        raise UnavailableError("the model is a stand-in, which has no KV cache")
    model, sites = built.model, built.sites
    ids = built.case(gpu, 1).batches[0]["input_ids"].to(gpu.device)
    n_prompt = ids.shape[1] // 2

    def steps(after: Callable[[], object]) -> float:
        past = model(ids[:, :n_prompt], use_cache=True).past_key_values
        gpu.synchronise()
        started = time.perf_counter()
        for position in range(n_prompt, n_prompt + sizes.steps):
            model(ids[:, position : position + 1], past_key_values=past, use_cache=True)
            after()
        gpu.synchronise()
        return (time.perf_counter() - started) / sizes.steps

    expected = _with_oracle(model, sites, steps)
    if n_wrong(expected, _with_oracle(model, sites, steps)):
        raise UnavailableError("decoding gave other values for the same tokens the second time")
    ways: dict[str, Callable[[list[Values]], float]] = {
        BASELINE: lambda found: steps(lambda: None),
        HOOK: partial(_with_hooks, model, sites, steps),
        "store, read after the last step": partial(_with_store, model, sites, steps, False),
        "store, read after each": partial(_with_store, model, sites, steps, True),
    }
    for name, way in ways.items():
        found: list[Values] = []
        way(found)
        if name != BASELINE:
            wrong = n_wrong(expected[-len(found) :], found)
            yield Figure(f"{name}: wrong values", wrong, "values", NONE)
    runs = {name: partial(way, []) for name, way in ways.items()}
    yield from in_turns(runs, "step", sizes.rounds)


def _with_oracle(model: nn.Module, sites: Sequence[str], steps: Steps) -> list[Values]:
    found: list[Values] = []
    with ReferenceStore(model, sites) as store:
        steps(lambda: found.append(dict(store.activations)))
    return found


@contextmanager
def _copying_hooks(bound: Iterable[BoundSite]) -> Iterator[dict[str, Tensor]]:
    """The synchronous hook: what the model's last pass gave, by site."""
    values: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> None:
        values[site] = value.detach().cpu()

    handles = attach_hooks(bound, keep)
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def _with_hooks(model: nn.Module, sites: Sequence[str], steps: Steps, found: list[Values]) -> float:
    with _copying_hooks(bind_sites(model, sites)) as values:
        return steps(lambda: found.append(dict(values)))


def _with_store(
    model: nn.Module, sites: Sequence[str], steps: Steps, reads_each: bool, found: list[Values]
) -> float:
    with fastcap.ActivationStore(model, sites) as store:
        secs = steps((lambda: found.append(store.activations)) if reads_each else lambda: None)
        if not reads_each:
            found.append(store.activations)
        return secs


# Batches of several lengths

EIGHTHS = (8, 3, 5, 1, 7, 2, 6, 4)


def lengths(gpu: Gpu, built: Built, sizes: Sizes) -> Iterator[Figure]:
    """Batches of eight lengths, all positions of every block, in loops that keep nothing."""
    n_tokens = built.subject.n_tokens
    batches = [
        {"input_ids": batch["input_ids"][:, : n_tokens * eighths // 8]}
        for eighths, batch in zip(EIGHTHS, built.case(gpu, 8).batches, strict=True)
    ]
    case = make_case(built.model, batches, built.sites, device=gpu.device)
    ways: dict[str, Callable[[Case], Iterator[Values]]] = {
        HOOK: hook_by_batch,
        "stream": streamed,
        "stream, lent": lent,
        "store, read after each": stored,
    }
    expected = _by_batch(case)
    for name, way in ways.items():
        wrong = n_wrong(expected, way(case))
        yield Figure(f"{name}: wrong values", wrong, "values", NONE)
    runs = {BASELINE: partial(_run_secs, gpu, baseline, case)}
    runs.update({name: partial(_run_secs, gpu, way, case) for name, way in ways.items()})
    yield from in_turns(runs, "batch", sizes.rounds)


def _by_batch(case: Case) -> list[dict[str, Tensor]]:
    """The oracle's values."""
    call = case.call
    passes = reference.stream(
        case.model, case.batches, case.sites, lambda _, batch: call(call.prepare(batch))
    )
    return list(passes)


def hook_by_batch(case: Case) -> Iterator[Values]:
    """The synchronous hook, whose values a loop looks at batch by batch."""
    with _copying_hooks(case.bound) as values:
        for _ in case.passes():
            yield dict(values)


def _run_secs(gpu: Gpu, way: Callable[[Case], Any], case: Case) -> float:
    gpu.synchronise()
    started = time.perf_counter()
    for _ in way(case):
        pass
    gpu.synchronise()
    return (time.perf_counter() - started) / len(case.batches)


# Compiled models

N_COMPILED_LAYERS = 8
COMPILERS: Mapping[str, dict[str, Any]] = {
    "compiled": {},
    'compiled, mode="reduce-overhead"': {"mode": "reduce-overhead"},
}
FASTCAP, COMPILED_FASTCAP = "fastcap stream, lent", "fastcap stream, lent, of a compiled model"


def compiled(gpu: Gpu, sizes: Sizes, is_dry: bool, n_tokens: int) -> Iterator[Figure]:
    """What compiling gains without capture, and what is left of it with.

    Graphs that `torch.compile` made skip hooks, so that fastcap runs a compiled model as plain
    Python: its time stands beside the compiled passes, too.
    """
    subject = tiny(LLAMA) if is_dry else LLAMA
    shape = replace(subject.shape, n_layers=2 if is_dry else N_COMPILED_LAYERS)
    model = build_model(shape, DTYPE, gpu.device)
    sites = blocks(shape.n_layers)
    generator = torch.Generator().manual_seed(1)
    size = (subject.batch_size, min(n_tokens, subject.n_tokens))
    batch = {"input_ids": torch.randint(shape.vocab_size, size, generator=generator)}
    n_passes = 3 if is_dry else 6 if n_tokens > 1 else 48
    case = make_case(model, [batch] * n_passes, sites, device=gpu.device)
    runs: dict[str, Callable[[], float]] = {
        BASELINE: partial(_run_secs, gpu, baseline, case),
        HOOK: partial(_run_secs, gpu, hook_by_batch, case),
        FASTCAP: partial(_run_secs, gpu, lent, case),
    }
    failed = []
    for name, options in COMPILERS.items():
        chosen = {"backend": "eager"} if is_dry else {"dynamic": False, **options}
        made: Any = torch.compile(model, **chosen)
        of_model = make_case(made, case.batches, sites, device=gpu.device)
        try:
            first_secs = n_passes * _run_secs(gpu, baseline, of_model)
        except Exception as error:  # noqa: BLE001 - no compiler here, or one that fails
            failed.append(f"{name}: {type(error).__name__}: {error}".splitlines()[0][:120])
            continue
        yield Figure(f"{name}: first run, with compiling", first_secs, "s")
        runs[name] = partial(_run_secs, gpu, baseline, of_model)
        if COMPILED_FASTCAP not in runs:
            wrong = n_wrong(_by_batch(case), lent(of_model))
            yield Figure(f"{COMPILED_FASTCAP}: wrong values", wrong, "values", NONE)
            runs[COMPILED_FASTCAP] = partial(_run_secs, gpu, lent, of_model)
    yield from in_turns(runs, "pass", sizes.rounds)
    if failed:
        raise UnavailableError("; ".join(failed))
