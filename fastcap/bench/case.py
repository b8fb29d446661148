"""What is measured: a model, its batches, and which values every way has to deliver."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcap import reference
from fastcap.errors import ArgumentError, BatchError
from fastcap.model.forward import BatchCaller, Forward, evaluation_mode, uncompiled
from fastcap.model.rows import count_rows
from fastcap.model.sites import BoundSite, Sites
from fastcap.request import request_run
from fastcap.spec import Positions, Reduce, Selection

Values = Mapping[str, Tensor]
"""One tensor of shape `(n_samples, ...)` per site, in the order of the sites."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One workload, run by every method.

    Attributes:
        model: The model.
        batches: The batches of one run.
        bound: Sites, each with its module.
        selection: What is kept.
        options: The selection as arguments of `fastcap.stream`.
        calling: How passes are made, as arguments of `fastcap.stream`.
        call: The same: `call(call.prepare(batch))` is a pass.
    """

    model: nn.Module
    batches: Sequence[Any]
    bound: Sequence[BoundSite]
    selection: Selection
    options: Mapping[str, Any]
    calling: Mapping[str, Any]
    call: BatchCaller

    @property
    def sites(self) -> list[str]:
        """The keys of every way's result."""
        return [bound.site.name for bound in self.bound]

    @property
    def device(self) -> torch.device:
        """Where the batches are moved to."""
        return self.call.device

    @property
    def sizes(self) -> list[int]:
        """Samples of each batch.

        Raises:
            BatchError: A batch does not say how many it has.
        """
        sizes = [count_rows(batch) for batch in self.batches]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise BatchError(
                "Cannot tell how many samples a batch has: it holds no tensor and no list. Give "
                "dicts, tensors or tuples of tensors."
            )
        return known

    def passes(self, *, is_compiled: bool = False) -> Iterator[Any]:
        """Run the model over each batch; gives each batch after its pass. Nothing is done in a pass
        that the model's own loop would not do.

        Args:
            is_compiled: Whether compiled parts run as such. Their graphs skip hooks.
        """
        plain = nullcontext() if is_compiled else uncompiled()
        with evaluation_mode(self.model), plain:
            for batch in self.batches:
                with torch.no_grad():
                    self.call(self.call.prepare(batch))
                yield batch

    def select(self, value: Tensor) -> Tensor:
        """What is wanted of a site's whole value, which is on the host already."""
        selection = self.selection
        if selection == Selection():
            return value
        return reference.take_selection(value, selection)

    def oracle(self) -> dict[str, Tensor]:
        """The right values, slowly.

        Raises:
            ArgumentError: A site's values of all batches do not make one tensor.
        """
        paths = _full_paths(self.model, self.bound)
        parts: dict[str, list[Tensor]] = {site: [] for site in self.sites}
        with evaluation_mode(self.model), uncompiled():
            for values in reference.stream(
                self.model,
                self.batches,
                list(dict.fromkeys(paths.values())),
                lambda model, batch: self.call(self.call.prepare(batch)),
                self.selection,
            ):
                for site, path in paths.items():
                    parts[site].append(values[path])
        return {site: _concatenated(site, values) for site, values in parts.items()}


def _full_paths(model: nn.Module, bound: Iterable[BoundSite]) -> dict[str, str]:
    """Each site's name with the segments of wrappers, which the oracle knows nothing of."""
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {id(module): path for path, module in reversed(modules.items())}
    return {
        each.site.name: each.site.name
        if modules.get(each.site.module) is each.module
        else each.site.at(paths[id(each.module)]).name
        for each in bound
    }


def _concatenated(site: str, values: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(value.shape) for value in values})
    if len({(shape[1:], len(shape)) for shape in shapes}) > 1 or () in shapes:
        raise ArgumentError(
            f"Site {site!r} gives values of shape {', '.join(map(str, shapes))}, which do not make "
            "one tensor with a row for each sample, and that is what ways are compared by. Measure "
            "batches of one length, take positions='last', or leave the site out."
        )
    return torch.cat(list(values))


def make_case(
    model: nn.Module,
    batches: Iterable[Any],
    sites: Sites,
    *,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    device: torch.device | str | int | None = None,
) -> Case:
    """Make a workload from the arguments of `fastcap.stream`, where they are documented.

    Raises:
        ArgumentError: No batches, no sites, or a selection that depends on each sample's own
            tokens, which a synchronous hook does not support.
        SiteNotFoundError: A site does not name a module of the model.
    """
    if model_inputs is not None:
        model_inputs = [model_inputs] if isinstance(model_inputs, str) else list(model_inputs)
    request = request_run(
        model,
        sites,
        device=device,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        seq_dim=seq_dim,
        batch_dim=batch_dim,
        model_inputs=model_inputs,
        forward=forward,
    )
    selection = request.selection
    if selection.needs_mask or selection.by_sample is not None or selection.batch_key is not None:
        raise ArgumentError(
            f"positions={positions!r}, reduce={reduce!r}: a selection that differs from sample to "
            "sample is nothing that the hooks it would be compared with can take. Measure with an "
            "int, a slice or a list of ints."
        )
    given = list(batches)
    if not given:
        raise ArgumentError("batches is empty: give at least one, such as [{'input_ids': ids}].")
    options = {
        "positions": positions,
        "reduce": reduce,
        "dtype": dtype,
        "seq_dim": seq_dim,
        "batch_dim": batch_dim,
    }
    return Case(
        model,
        given,
        request.bound,
        selection,
        options,
        {"model_inputs": model_inputs, "forward": forward},
        request.call,
    )
