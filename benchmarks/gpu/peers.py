"""A Llama captured in everybody's way, end to end: time beside the baseline, every value compared.

    python -m benchmarks.gpu.peers [--limit-secs 330]
    python -m benchmarks.gpu.peers --dry-run

All positions of every block into host memory: the synchronous hook, `non_blocking`, a careful hook
with pinned memory and a stream of its own, transformers' `output_hidden_states`, nnsight where it
is installed, and fastcap; the last position; decoding with a KV cache; batches of many lengths; and
compiled models, of which capturing leaves plain Python.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import command, loops, turns
from benchmarks.gpu.command import Program
from benchmarks.gpu.grid import ALL, HOOK, LAST, Group, Ways
from benchmarks.gpu.report import UnavailableError
from benchmarks.gpu.subjects import LLAMA, Built, is_from_transformers, tiny
from benchmarks.workloads import collect_hidden_states
from fastcap.bench import Case
from fastcap.bench.case import Values
from fastcap.bench.ways import (
    Way,
    in_memory,
    into_reused,
    lent,
    non_blocking_hook,
    pinned_hook,
    synchronous_hook,
)

LIMIT_SECS = 330.0
DECODE = "decoding with a KV cache, 32 sites"
LENGTHS = "batches of eight lengths"
COMPILED = {1024: "compiled models, 1024 tokens", 1: "compiled models, one token"}


@torch.no_grad()
def hidden_states(move: Any, synchronise: Callable[[], None], case: Case) -> Values:
    """`output_hidden_states=True`, each state moved to the host after the pass."""
    if not is_from_transformers(case.model):
        raise UnavailableError("the model is a stand-in, which gives no hidden states")
    return collect_hidden_states(case.model, case, move, synchronise)


def _to_host(state: Tensor) -> Tensor:
    return state.to("cpu", non_blocking=True)


@torch.no_grad()
def with_nnsight(case: Case) -> Values:
    """`tracer.cache`, as its documentation shows."""
    try:
        import nnsight
    except ImportError as error:
        raise UnavailableError(f"nnsight cannot be imported: {error}") from error
    wrapped: Any = nnsight.NNsight(case.model)
    modules = [wrapped.get(site) for site in case.sites]
    parts: dict[str, list[Tensor]] = {site: [] for site in case.sites}
    for batch in case.batches:
        with wrapped.trace(batch["input_ids"].to(case.device)) as tracer:
            cache = tracer.cache(modules=modules)
        for site, values in parts.items():
            output = cache[f"model.{site}"].output
            values.append((output[0] if isinstance(output, tuple) else output).cpu())
    return {site: torch.cat(values) for site, values in parts.items()}


def groups_of(program: Program) -> list[Group]:
    """What is asked in every way. nnsight wraps the model, so that it has a baseline of its own."""
    synchronise = program.gpu.synchronise
    hooks: dict[str, Way] = {HOOK: synchronous_hook}
    if not program.is_dry:
        hooks["hook, pinned, side stream"] = pinned_hook
    ours: dict[str, Way] = {"fastcap": in_memory, "fastcap stream, lent": lent}
    everybody: Ways = {
        **hooks,
        "hook, non_blocking": non_blocking_hook,
        "output_hidden_states, .cpu()": partial(hidden_states, Tensor.cpu, synchronise),
        "output_hidden_states, non_blocking": partial(hidden_states, _to_host, synchronise),
        **ours,
        "fastcap, out=": into_reused,
    }
    subject = tiny(LLAMA) if program.is_dry else LLAMA
    with_own_baseline: Ways = {"nnsight, tracer.cache": with_nnsight, **ours}
    return [
        Group(subject, ALL, 140, 3, everybody),
        Group(subject, LAST, 30, 4, {**hooks, **ours}),
        Group(subject, ALL, 40, 3, with_own_baseline, mark=", beside nnsight"),
    ]


def everything(program: Program) -> None:
    """Peers first, then loops; what takes longest to begin, compiling, comes last."""
    gpu, sizes, groups = program.gpu, program.sizes, groups_of(program)
    for group in groups:
        turns.entries_of(program, group)
    for question in (DECODE, LENGTHS, *COMPILED.values()):
        program.ask(question)
    try:
        _on_llama(program, groups, turns.open_subject(program, groups[0].subject))
    except UnavailableError as error:
        program.notes.append(str(error))
    except Exception as error:  # noqa: BLE001 - a compiled model can still be measured
        program.fail("llama", error)
    turns.close_subject(gpu)
    for n_tokens, question in COMPILED.items():
        run = partial(loops.compiled, gpu, sizes, program.is_dry, n_tokens)
        program.measure(question, run, likely_secs=0 if program.is_dry else 40)


def _on_llama(program: Program, groups: list[Group], built: Built) -> None:
    gpu, sizes = program.gpu, program.sizes
    # The last of transformers' hidden states is not the last block's output, but the normed one.
    built = replace(built, sites=built.sites[:-1])
    if is_from_transformers(built.model):
        with torch.no_grad():  # leaves hooks of its own on the model, which all ways then have
            ids = built.case(gpu, 1).batches[0]["input_ids"][:1, :8].to(gpu.device)
            built.model(ids, output_hidden_states=True)
    everybody, last, with_own_baseline = groups
    turns.measure_group(program, everybody, built)
    program.measure(DECODE, partial(loops.decode, gpu, built, sizes), likely_secs=20)
    turns.measure_group(program, last, built)
    program.measure(LENGTHS, partial(loops.lengths, gpu, built, sizes), likely_secs=30)
    turns.measure_group(program, with_own_baseline, built)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu.peers", __doc__, LIMIT_SECS)
    return command.run("peers", parser.parse_args(arguments), everything)


if __name__ == "__main__":
    sys.exit(main())
