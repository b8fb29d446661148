"""The ways to capture the same sites of the same samples, one function each.

Every capturing way returns one `(n_samples, ...)` tensor per site, in the order of the sites, and
must equal the oracle bit for bit. `hookless` captures nothing: it is what the others are held
against, and returns the model's output for the last batch under the name of the root module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import fastcap
from benchmarks.turns import Player, take_turns
from benchmarks.workloads import Case
from fastcap import reference
from fastcap.bench.equality import same_bytes
from fastcap.spec import make_selection

Values = dict[str, Tensor]
Way = Callable[[Case], Values]

ROOT = ""


def hookless(case: Case) -> Values:
    """The same loop with nothing captured."""
    values: Values = {}
    for batch in case.batches():
        values.clear()  # no other way keeps an output while the next is made
        values[ROOT] = _run(case.model, batch, case.workload.device)
    return values


def incumbent(case: Case) -> Values:
    """What the documented calls do: copy in the hook and wait for it, keep lists, concatenate.

    It has no selection, so the wanted position is cut out at the end, as its page says.
    """
    captured: Values = {}
    parts: dict[str, list[Tensor]] = {site: [] for site in case.workload.sites}
    handles = _attach_synchronous_hooks(case.model, case.workload.sites, captured)
    try:
        for batch in case.batches():
            _run(case.model, batch, case.workload.device)
            for site, values in parts.items():
                values.append(captured[site])
            captured.clear()
    finally:
        for handle in handles:
            handle.remove()
    whole = {site: torch.cat(values) for site, values in parts.items()}
    positions = case.workload.positions
    if positions is None:
        return whole
    return {site: acts[:, positions].contiguous() for site, acts in whole.items()}


def oracle(case: Case) -> Values:
    """The library's own definition of right: every value cloned in the hook."""
    device = case.workload.device
    return reference.extract(
        case.model,
        case.batches(),
        case.workload.sites,
        lambda model, batch: _run(model, batch, device),
        selection=make_selection(case.workload.positions),
    )


def with_fastcap(case: Case) -> Values:
    return fastcap.extract_representations(
        case.model,
        case.dataset,
        case.workload.sites,
        case.workload.device,
        case.workload.batch_size,
        positions=case.workload.positions,
    )


HOOKLESS, INCUMBENT, ORACLE, FASTCAP = "hookless", "incumbent", "oracle", "fastcap"

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        HOOKLESS: hookless,
        INCUMBENT: incumbent,
        ORACLE: oracle,
        FASTCAP: with_fastcap,
    }
)

CAPTURING = tuple(name for name in WAYS if name != HOOKLESS)


def play_round(cases: Mapping[str, Case], order: Sequence[str]) -> dict[str, tuple[float, Values]]:
    """Run every way once on a case of its own, in turns; seconds and values by way."""
    players = {way: Player(cases[way].model, partial(WAYS[way], cases[way])) for way in order}
    return take_turns(players, order)


@torch.no_grad()
def _run(model: nn.Module, batch: Mapping[str, Tensor], device: str) -> Tensor:
    output: Tensor = model(batch["input_ids"].to(device))
    return output


def _attach_synchronous_hooks(
    model: nn.Module, sites: tuple[str, ...], captured: Values
) -> list[RemovableHandle]:
    def hook_for(site: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            captured[site] = output.detach().cpu()

        return hook

    return [model.get_submodule(site).register_forward_hook(hook_for(site)) for site in sites]


class Verifier:
    """Holds every run of every way against the oracle's first run.

    A way's first run is compared in full by `fastcap.reference.differences`; later ones byte by
    byte, which takes a tenth of the time, and in full again where that fails. `hookless` must
    repeat its own first output: that forward passes repeat exactly is what makes the comparison
    of the others fair.
    """

    def __init__(self) -> None:
        self.problems: dict[str, list[str]] = {}
        self._expected: dict[str, Values] = {}

    def check(self, way: str, values: Values) -> None:
        """Note what differs. The oracle, and `hookless`, must come before what they judge."""
        values = {name: value.cpu() for name, value in values.items()}
        judge = HOOKLESS if way == HOOKLESS else ORACLE
        if way == judge:
            self._expected.setdefault(judge, values)
        expected = self._expected[judge]
        is_first = way not in self.problems
        found = self.problems.setdefault(way, [])
        if is_first or not same_bytes(expected, values):
            found += reference.differences(expected, values)

    def is_equal(self) -> dict[str, bool]:
        return {way: not problems for way, problems in self.problems.items()}
