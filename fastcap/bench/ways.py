"""Ways to capture the same values, one function each.

A way is a function of a `Case`. It runs the case's batches through the model and either returns one
tensor per site, or is a generator of one such mapping per batch, as a loop over a stream is. Every
way must equal the oracle bit for bit. `baseline` captures nothing: it is what the others are held
against.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.activations import ActivationStore
from fastcap.archive.reader import Archive
from fastcap.bench.case import Case, Values
from fastcap.devices.accelerator import ABILITIES, GENERIC, Abilities, synchronise
from fastcap.errors import ArgumentError
from fastcap.extraction.run import extract
from fastcap.model.sites import BoundSite
from fastcap.reference import take_input, take_part
from fastcap.representations import extract_representations
from fastcap.spec import Site
from fastcap.streaming import stream

Way = Callable[[Case], Values | Iterator[Values]]
"""See the module."""

Keep = Callable[[str, Tensor], None]
"""Told a site and what it produced, in the hook."""


def baseline(case: Case) -> Values:
    """The same passes with nothing captured."""
    for _ in case.passes(is_compiled=True):
        pass
    return {}


# Plain hooks


def synchronous_hook(case: Case) -> Values:
    """What most code does: `.detach().cpu()` in the hook, lists, and `cat`.

    On a CPU model `.cpu()` copies nothing, so that values a model changes in place come out wrong.
    It has no selection: the wanted positions are cut out at the end.
    """
    return _collect(case, lambda value: value.detach().cpu())


def non_blocking_hook(case: Case) -> Values:
    """`.to("cpu", non_blocking=True)` in the hook, and one wait for the device after each pass."""
    return _collect(
        case,
        lambda value: value.detach().to("cpu", non_blocking=True),
        after_pass=partial(synchronise, case.device),
    )


def pinned_hook(case: Case) -> Values:
    """A fresh pinned buffer for every value, filled on a second stream that is waited for after
    each pass: what a careful hook does.

    Raises:
        ArgumentError: The model is on the CPU, where there are no streams.
    """
    if case.device.type == "cpu":
        raise ArgumentError(
            "pinned_hook copies on a second stream, and a model on the CPU has none. Measure it "
            "on an accelerator."
        )
    return collect_pinned(case, ABILITIES.get(case.device.type, GENERIC))


def collect_pinned(case: Case, can: Abilities) -> Values:
    """`pinned_hook`, with the streams and events that are given."""
    side = can.new_stream(case.device)
    sources: list[Tensor] = []

    def take(value: Tensor) -> Tensor:
        value = value.detach()
        sources.append(value)  # so that its memory is not used again before the copy is done
        target = can.new_pinned(value.nbytes).view(value.dtype).view(value.shape)
        produced = can.new_event(case.device)
        produced.record(can.current_stream(case.device))
        side.wait_event(produced)
        with can.use_stream(side):
            return target.copy_(value, non_blocking=True)

    def after_pass() -> None:
        side.synchronize()
        sources.clear()

    return _collect(case, take, after_pass)


def _collect(
    case: Case, take: Callable[[Tensor], Tensor], after_pass: Callable[[], None] = lambda: None
) -> Values:
    captured: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {site: [] for site in case.sites}

    def keep(site: str, value: Tensor) -> None:
        captured[site] = take(value)

    handles = attach_hooks(case.bound, keep)
    try:
        for _ in case.passes():
            after_pass()
            for site, value in captured.items():
                parts[site].append(value)
            captured.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {site: _joined(case, values) for site, values in parts.items() if values}


def _joined(case: Case, values: list[Tensor]) -> Tensor:
    if len({value.shape[1:] for value in values}) == 1:
        return case.select(torch.cat(values))
    return torch.cat([case.select(value) for value in values])  # batches of several lengths


def attach_hooks(bound: Iterable[BoundSite], keep: Keep) -> list[RemovableHandle]:
    """Ordinary hooks on the modules of some sites; call `remove()` of each handle."""
    return [_attach_hook(each.module, each.site, keep) for each in bound]


def check_sites_fire(case: Case) -> None:
    """Run one pass of every batch; of one that is there many times, once.

    Raises:
        ArgumentError: A site gave no tensor in one.
    """
    fired: set[str] = set()
    once = {id(batch): batch for batch in case.batches}
    handles = attach_hooks(case.bound, lambda site, value: fired.add(site))
    try:
        for _ in replace(case, batches=list(once.values())).passes():
            silent = [site for site in case.sites if site not in fired]
            if silent:
                raise ArgumentError(
                    f"Site {silent[0]!r} gave no tensor in a pass"
                    + (f", nor did {len(silent) - 1} more" if silent[1:] else "")
                    + ". Leave it out, or name a part of its output. What every module gives is "
                    "shown by: fastcap sites MODEL --example BATCH"
                )
            fired.clear()
    finally:
        for handle in handles:
            handle.remove()


def _attach_hook(module: nn.Module, site: Site, keep: Keep) -> RemovableHandle:
    if site.side == "input":

        def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = take_input(module, args, kwargs, site)
            if value is not None:
                keep(site.name, value)

        return module.register_forward_pre_hook(read_input, with_kwargs=True)

    def read_output(module: nn.Module, args: Any, output: Any) -> None:
        value = take_part(output, site)
        if value is not None:
            keep(site.name, value)

    return module.register_forward_hook(read_output)


# fastcap


def in_memory(case: Case, **options: Any) -> Values:
    """`fastcap.extract_representations`: rows of a result that is allocated once.

    Args:
        case: The question.
        options: More arguments, such as `out=`.

    Raises:
        ArgumentError: A batch before the last has another size than the first.
    """
    rows = _Rows(case)
    return extract_representations(
        case.model,
        rows.dataset,
        case.sites,
        case.device,
        rows.batch_size,
        collate_fn=rows.batch_of,
        **case.calling,
        **case.options,
        **options,
    )


_reused: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Values]] = weakref.WeakKeyDictionary()


def into_reused(case: Case) -> Values:
    """`fastcap.extract_representations(out=)`: memory that every run of a case uses again, pinned
    where the model is on a GPU. What one run returns, the next one overwrites.

    Raises:
        ArgumentError: A batch before the last has another size than the first.
    """
    of_model = _reused.setdefault(case.model, {})
    question = (*case.sites, *case.sizes, repr(case.options))
    if question not in of_model:
        of_model.clear()
        of_model[question] = {
            site: torch.zeros(
                value.shape, dtype=value.dtype, device="cpu", pin_memory=case.device.type == "cuda"
            )
            for site, value in in_memory(case).items()
        }
    return in_memory(case, out=of_model[question])


def archived_in(folder: Path | None) -> Way:
    """`fastcap.extract` into a new archive, which is removed when its values are dropped.

    Args:
        folder: Where to make it; `None` for the system's folder of temporary files.
    """

    def archived(case: Case) -> Values:
        rows = _Rows(case)
        out = Path(tempfile.mkdtemp(prefix="fastcap-bench-", dir=folder))
        try:
            archive = extract(
                case.model,
                rows.dataset,
                case.sites,
                out / "acts",
                device=case.device,
                batch_size=rows.batch_size,
                collate_fn=rows.batch_of,
                **case.calling,
                **case.options,
            )
        except BaseException:
            shutil.rmtree(out)
            raise
        return _Archived(archive, out)

    return archived


class _Archived(Mapping[str, Tensor]):
    """An archive's values, read when they are looked at: reading is not part of writing."""

    def __init__(self, archive: Archive, out: Path) -> None:
        self._archive = archive
        weakref.finalize(self, shutil.rmtree, out)

    def __getitem__(self, site: str) -> Tensor:
        values: Tensor = self._archive[site][:]
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.sites)

    def __len__(self) -> int:
        return len(self._archive.sites)


class _Rows:
    """Batches that are made already, for functions that make batches of samples themselves.

    Raises:
        ArgumentError: A batch before the last has another size than the first.
    """

    def __init__(self, case: Case) -> None:
        sizes = case.sizes
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise ArgumentError(
                f"fastcap makes batches of one size from a dataset, and these have {sizes} "
                "samples. Give batches of one size, the last of which may be shorter, or measure "
                "'fastcap stream'."
            )
        self._batches = case.batches
        self.batch_size = sizes[0]
        self.dataset = range(sum(sizes))

    def batch_of(self, rows: list[int]) -> Any:
        return self._batches[rows[0] // self.batch_size]


def streamed(case: Case) -> Generator[Values, None, None]:
    """`fastcap.stream`: each batch's values in memory of their own, which is used again."""
    return _streamed(case, zero_copy=False)


def lent(case: Case) -> Generator[Values, None, None]:
    """`fastcap.stream(zero_copy=True)`: values are lent out of the slots they landed in."""
    return _streamed(case, zero_copy=True)


def _streamed(case: Case, zero_copy: bool) -> Generator[Values, None, None]:
    with stream(
        case.model,
        case.batches,
        case.sites,
        device=case.device,
        zero_copy=zero_copy,
        **case.calling,
        **case.options,
    ) as records:
        yield from map(dict, records)


def stored(case: Case) -> Generator[Values, None, None]:
    """`fastcap.ActivationStore` around passes of one's own, read after each."""
    with ActivationStore(case.model, case.sites, **case.options) as store:
        for _ in case.passes():
            yield {site: store.activations[site] for site in case.sites}
            store.clear()


BASELINE, HOOK, FASTCAP, ARCHIVE = "baseline", "hook", "fastcap", "fastcap archive"
REUSED = "fastcap, out="

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        BASELINE: baseline,
        HOOK: synchronous_hook,
        "hook, non_blocking": non_blocking_hook,
        "hook, pinned, side stream": pinned_hook,
        FASTCAP: in_memory,
        REUSED: into_reused,
        ARCHIVE: archived_in(None),
        "fastcap store": stored,
        "fastcap stream": streamed,
        "fastcap stream, lent": lent,
    }
)
"""Every way, by the name that reports give it."""


def ways_for(device: torch.device | str) -> dict[str, Way]:
    """The ways that a model on `device` can be captured in."""
    is_cpu = torch.device(device).type == "cpu"
    return {name: way for name, way in WAYS.items() if not (is_cpu and way is pinned_hook)}
