"""What a run is asked for: the arguments of a public call, checked and assembled in one place.

Every public call that captures takes its arguments through here, so an option that is added here
means the same, and is refused with the same words, wherever it can be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastcap.engine import Engine, Pass
from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.model.early_stop import EarlyStop, StopAfter
from fastcap.model.forward import BatchCaller, Forward
from fastcap.model.sites import BoundSite, Sites, as_site_names, bind_sites
from fastcap.selection.batch_dimension import BatchDimension
from fastcap.selection.per_sample import MaskOf, MaskOfBatch, RowSource
from fastcap.spec import Positions, Reduce, Selection, as_keeps_all, make_selection
from fastcap.transfer.budget import Limits, make_limits


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CaptureRequest:
    """What is captured, whoever calls the model.

    Attributes:
        model: The root module.
        names: The sites as given, patterns unexpanded.
        selection: What is taken there.
        rows: Where passes learn what to take of each sample.
        limits: How much memory transfers may use.
        keeps_all: Whether earlier calls of a site are kept beside the last; `None` where nothing
            says, which keeps the last and tells of others.
        zero_copy: Whether values may be lent out of slots.
    """

    model: nn.Module
    names: Sequence[str]
    selection: Selection
    rows: RowSource
    limits: Limits
    keeps_all: bool | None
    zero_copy: bool

    def engine(self, bound: Sequence[BoundSite], always: Pass | None = None) -> Engine:
        """An engine for these sites, with no hook on the model yet."""
        return Engine(self.model, bound, self.selection, self.limits, always, self.rows)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RunRequest(CaptureRequest):
    """What is captured in passes that fastcap runs.

    Attributes:
        bound: The sites, each with its module.
        call: How a batch becomes a pass.
        early_stop: Whether passes end before the model does.
    """

    bound: Sequence[BoundSite]
    call: BatchCaller
    early_stop: EarlyStop

    @property
    def site_names(self) -> list[str]:
        """The keys of results, in the order asked."""
        return [each.site.name for each in self.bound]

    def batch_dimension(self) -> BatchDimension:
        """A check of the first pass, for a run whose rows are samples."""
        return BatchDimension(self.call, self.bound, self.selection, self.rows)


def request_capture(
    model: nn.Module,
    sites: Sites | None,
    *,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    mask: MaskOf = None,
    calls: str | None = None,
    zero_copy: bool = False,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
) -> CaptureRequest:
    """The arguments of `fastcap.ActivationStore`, which explains them. Sites are bound later.

    Raises:
        ArgumentTypeError, ArgumentError, SiteNotFoundError: As the store says.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module; got {model!r}.")
    names = as_site_names(sites, model)
    selection = make_selection(positions, reduce, dtype, seq_dim, batch_dim)
    if selection.batch_key is not None:
        raise ArgumentError(
            f"positions={selection.batch_key!r}: the words a store knows are 'last' and "
            "'unpadded'. A key of the batch is for stream() and extract_representations(); "
            "here, give one list of positions per sample."
        )
    return CaptureRequest(
        model=model,
        names=names,
        selection=selection,
        rows=RowSource(selection, mask),
        limits=make_limits(staging_bytes, pinned_bytes),
        keeps_all=as_keeps_all(calls),
        zero_copy=zero_copy,
    )


def request_run(
    model: nn.Module,
    sites: Sites | None,
    *,
    device: torch.device | str | int | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    calls: str | None = None,
    stop_after_last_site: StopAfter = False,
    zero_copy: bool = False,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
    may_be_meta: bool = False,
) -> RunRequest:
    """The arguments that all calls have in common that run batches; `fastcap.stream` explains them.

    A model without data `may_be_meta`.

    Raises:
        ArgumentTypeError, ArgumentError, SiteNotFoundError, DeviceError: As the calls say.
    """
    names = as_site_names(sites, model)
    if not names:
        raise ArgumentError("sites is empty: name at least one module, such as ['layers.0.mlp'].")
    selection = make_selection(positions, reduce, dtype, seq_dim, batch_dim)
    limits = make_limits(staging_bytes, pinned_bytes, zero_copy)
    keeps_all = as_keeps_all(calls)
    call = BatchCaller(model, device, model_inputs, forward, may_be_meta)
    bound = bind_sites(model, names)
    return RunRequest(
        model=model,
        names=names,
        selection=selection,
        limits=limits,
        keeps_all=keeps_all,
        zero_copy=zero_copy,
        bound=bound,
        call=call,
        early_stop=EarlyStop(model, [each.site.name for each in bound], stop_after_last_site),
        rows=RowSource(selection, mask_of_batch=mask),
    )
