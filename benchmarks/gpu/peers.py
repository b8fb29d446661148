"""A Llama captured in everybody's way, end to end: time beside the baseline, every value compared.

    python -m benchmarks.gpu.peers [--limit-secs 330]
    python -m benchmarks.gpu.peers --dry-run

All positions of every block into host memory: the synchronous hook, `non_blocking`, a careful hook
with pinned memory and a stream of its own, transformers' `output_hidden_states`, nnsight where it
is installed, and fastcap; the last position; decoding with a KV cache; batches of many lengths; and
compiled models, of which capturing leaves plain Python.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.gpu import command, turns
from benchmarks.gpu.command import Program
from benchmarks.gpu.grid import ALL, HOOK, LAST
from benchmarks.gpu.report import NONE, Figure, UnavailableError, describe_error, of_ratio
from benchmarks.gpu.subjects import LLAMA, is_from_transformers
from benchmarks.gpu.toolbox import Gpu
from benchmarks.gpu.turns import Question
from benchmarks.models import build_model
from benchmarks.workloads import Workload, collect_hidden_states
from fastcap import reference
from fastcap.bench import Case, make_case, paired_ratio
from fastcap.bench.case import Values
from fastcap.bench.equality import wrong_sites
from fastcap.bench.timing import measure_rounds, run_one_after_another
from fastcap.bench.ways import (
    BASELINE,
    FASTCAP,
    Way,
    attach_hooks,
    baseline,
    in_memory,
    into_reused,
    lent,
    non_blocking_hook,
    pinned_hook,
    stored,
    streamed,
    synchronous_hook,
)

LIMIT_SECS = 330.0
N_PASSES = 3
LENT, STORE = "fastcap stream, lent", "fastcap store, read after each pass"
NNSIGHT = "nnsight, tracer.cache"
DECODE = "decoding with a KV cache"
LENGTHS = "batches of eight lengths"
LENGTHS_SECS = 40.0


# Everybody's ways


@torch.no_grad()
def hidden_states(move: Any, synchronise: Callable[[], None], case: Case) -> Values:
    """`output_hidden_states=True`, each state moved to the host after the pass."""
    if not is_from_transformers(case.model):
        raise UnavailableError("the model is a stand-in, which gives no hidden states")
    return collect_hidden_states(case.model, case, move, synchronise)


def _to_host(state: Tensor) -> Tensor:
    return state.to("cpu", non_blocking=True)


@torch.no_grad()
def with_nnsight(wrap: Callable[[nn.Module], Any], case: Case) -> Values:
    """`tracer.cache`, as its documentation shows."""
    wrapped = wrap(case.model)
    modules = [wrapped.get(site) for site in case.sites]
    parts: dict[str, list[Tensor]] = {site: [] for site in case.sites}
    for batch in case.batches:
        with wrapped.trace(batch["input_ids"].to(case.device)) as tracer:
            cache = tracer.cache(modules=modules)
        for site, values in parts.items():
            output = cache[f"model.{site}"].output
            values.append((output[0] if isinstance(output, tuple) else output).cpu())
    return {site: torch.cat(values) for site, values in parts.items()}


def hook_by_batch(case: Case) -> Iterator[Values]:
    """The synchronous hook, whose values a loop looks at batch by batch."""
    values: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> None:
        values[site] = value.detach().cpu()

    handles = attach_hooks(case.bound, keep)
    try:
        for _ in case.passes():
            yield dict(values)
    finally:
        for handle in handles:
            handle.remove()


# Questions


class Asked(NamedTuple):
    """One question: what its entries are called, the ways, and what makes it of a model."""

    name: str
    ways: Mapping[str, Way]
    make: Callable[[nn.Module], Question]
    likely_secs: float


Model = Callable[[], nn.Module]


def of_llama(program: Program, subject: Workload) -> list[Asked]:
    """What is asked of the large model. nnsight wraps it, and comes last."""
    gpu = program.gpu
    hooks: dict[str, Way] = {HOOK: synchronous_hook}
    if not program.is_dry:
        hooks["hook, pinned, side stream"] = pinned_hook
    ours: dict[str, Way] = {FASTCAP: in_memory, LENT: lent}
    everybody: dict[str, Way] = {
        **hooks,
        "hook, non_blocking": non_blocking_hook,
        "output_hidden_states, .cpu()": partial(hidden_states, Tensor.cpu, gpu.synchronise),
        "output_hidden_states, non_blocking": partial(hidden_states, _to_host, gpu.synchronise),
        **ours,
        "fastcap, out=": into_reused,
    }
    last = replace(subject, positions=-1)
    wrap = cache(_wrap_for_nnsight)

    def whole(model: nn.Module) -> Question:
        if is_from_transformers(model):
            with torch.no_grad():  # leaves hooks of its own on the model, which all ways then have
                model(torch.zeros(1, 8, dtype=torch.long).to(gpu.device), output_hidden_states=True)
        return Question(gpu, subject.build(model))

    def wrapped(model: nn.Module) -> Question:
        wrap(model)  # what that adds to a pass, the baseline has, too
        return Question(gpu, subject.build(model))

    return [
        Asked(f"llama, {ALL.name}", everybody, whole, 12),
        Asked(f"llama, {LAST.name}", {**hooks, **ours}, lambda m: Question(gpu, last.build(m)), 6),
        Asked(DECODE, {HOOK: synchronous_hook, STORE: stored}, partial(decoding, gpu, subject), 8),
        Asked("beside nnsight", {NNSIGHT: partial(with_nnsight, wrap), LENT: lent}, wrapped, 12),
    ]


def _wrap_for_nnsight(model: nn.Module) -> Any:
    try:
        import nnsight
    except ImportError as error:
        raise UnavailableError(f"nnsight cannot be imported: {error}") from error
    return nnsight.NNsight(model)


@torch.no_grad()
def decoding(gpu: Gpu, subject: Workload, model: nn.Module) -> Question:
    """Steps of one token with a KV cache, every block captured."""
    if not is_from_transformers(model):
        raise UnavailableError("the model is a stand-in, which has no KV cache")
    caller: Any = model
    ids = subject.build(model).batches[0]["input_ids"]
    n_prompt = ids.shape[1] // 2
    prompt = caller(ids[:, :n_prompt].to(gpu.device), use_cache=True).past_key_values
    past: Any = None

    def step(model: Any, batch: Mapping[str, Any]) -> Any:
        nonlocal past
        if batch["is_first"]:
            past = copy.deepcopy(prompt)
        return model(batch["input_ids"], past_key_values=past, use_cache=True)

    batches = [
        {"input_ids": ids[:, position : position + 1], "is_first": position == n_prompt}
        for position in range(n_prompt, n_prompt + gpu.sizes.steps)
    ]
    case = make_case(model, batches, subject.sites, forward=step, device=gpu.device)
    return Question(gpu, case)


COMPILERS: Mapping[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {"dynamic": False},
    'compiled, mode="reduce-overhead"': {"dynamic": False, "mode": "reduce-overhead"},
}


def of_compiled(program: Program, subject: Workload) -> list[Asked]:
    """The same passes eagerly and compiled.

    Graphs that `torch.compile` made skip hooks, so that what captures runs a compiled model as
    plain Python: what compiling gains is lost, and stands in the ratio to the compiled passes.
    """
    asked = []
    for n_tokens, n_passes in ((subject.n_tokens, 6), (1, 48)):
        n_passes = N_PASSES if program.is_dry else n_passes
        of_size = replace(subject, n_tokens=n_tokens, n_samples=n_passes * subject.batch_size)
        for mode, options in COMPILERS.items():
            if program.is_dry and options is not None:
                options = {"backend": "eager"}
            make = partial(compiled, program.gpu, of_size, options)
            asked.append(Asked(f"{mode}, tokens: {n_tokens}", {LENT: lent}, make, 8))
    return asked


def compiled(
    gpu: Gpu, subject: Workload, options: dict[str, Any] | None, model: nn.Module
) -> Question:
    made: Any = model if options is None else torch.compile(model, **options)
    case = subject.build(made)
    try:
        baseline(case)
    except Exception as error:  # no compiler here, or one that fails
        raise UnavailableError(f"it does not compile here: {describe_error(error)}") from error
    return Question(gpu, case)


# Batches of several lengths, whose values are no one tensor

EIGHTHS = (8, 3, 5, 1, 7, 2, 6, 4)


def lengths(program: Program, subject: Workload, model: Model) -> Iterator[Figure]:
    """All positions of every block, in loops that keep nothing."""
    gpu = program.gpu
    whole = replace(subject, n_samples=len(EIGHTHS) * subject.batch_size).build(model())
    batches = [
        {"input_ids": batch["input_ids"][:, : subject.n_tokens * eighths // 8]}
        for eighths, batch in zip(EIGHTHS, whole.batches, strict=True)
    ]
    case = replace(whole, batches=batches)
    call = case.call
    expected = list(
        reference.stream(
            case.model, batches, case.sites, lambda _, batch: call(call.prepare(batch))
        )
    )
    ways: dict[str, Callable[[Case], Iterator[Values]]] = {
        HOOK: hook_by_batch,
        "fastcap stream": streamed,
        LENT: lent,
        STORE: stored,
    }
    for name, way in ways.items():
        found = zip(expected, way(case), strict=True)
        n_wrong = sum(len(wrong_sites(*both)) for both in found)
        yield Figure(f"{name}: wrong values", n_wrong, "values", NONE)
    runs: dict[str, Callable[[], None]] = {BASELINE: partial(_run, baseline, case)}
    runs |= {name: partial(_run, way, case) for name, way in ways.items()}
    play = partial(run_one_after_another, runs, synchronise=gpu.synchronise)
    secs = measure_rounds(
        list(runs), play, gpu.sizes.rounds, lambda *_: None, limit_secs=LENGTHS_SECS / 2
    )
    for name, of_way in secs.items():
        yield Figure(name, 1e3 * statistics.median(of_way) / len(batches), "ms per batch")
        if name != BASELINE:
            yield of_ratio(f"{name}, baseline = 1", paired_ratio(of_way, secs[BASELINE]))


def _run(way: Callable[[Case], Iterable[Any]], case: Case) -> None:
    for _ in way(case):
        pass


# The program

N_COMPILED_LAYERS = 8


def everything(program: Program) -> None:
    """Peers first, then loops; what takes longest to begin, compiling, comes last."""
    llama = turns.subject_of(program, LLAMA)
    # The last of transformers' hidden states is not the last block's output, but the normed one.
    subject = replace(llama, sites=llama.sites[:-1], n_samples=N_PASSES * llama.batch_size)
    shape = replace(llama.shape, n_layers=min(N_COMPILED_LAYERS, llama.shape.n_layers))
    sites = llama.sites[: shape.n_layers]
    short = replace(llama, name="decoder", shape=shape, sites=sites, make=build_model)
    asked, of_short = of_llama(program, subject), of_compiled(program, short)
    for each in (*asked, *of_short):
        for way in each.ways:
            program.ask(f"{each.name}: {way}")
    program.ask(LENGTHS)
    with turns.opened(program, subject) as model:
        for each in asked:
            measure_all(program, each, model)
        program.measure(LENGTHS, partial(lengths, program, subject, model), LENGTHS_SECS)
    with turns.opened(program, short) as model:
        for each in of_short:
            measure_all(program, each, model)


def measure_all(program: Program, asked: Asked, model: Model) -> None:
    turns.measure_ways(
        program, asked.name, lambda: asked.make(model()), asked.ways, asked.likely_secs
    )


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu.peers", __doc__, LIMIT_SECS)
    return command.run("peers", parser.parse_args(arguments), everything)


if __name__ == "__main__":
    sys.exit(main())
