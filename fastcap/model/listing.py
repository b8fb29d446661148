"""`list_sites`: what can be captured in a model, and how large it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.errors import ArgumentTypeError, UnsupportedTensorError
from fastcap.formatting import html_text
from fastcap.model.forward import BatchCaller, Forward, unchanged, uncompiled
from fastcap.model.hooks import attach, detach
from fastcap.model.parts import as_capturable, tensor_parts
from fastcap.model.rows import count_rows
from fastcap.model.site_tree import PartInfo, SiteInfo, to_lines
from fastcap.model.sites import BoundSite, Sites, as_site_names, bind_sites
from fastcap.spec import Site


class SiteList(tuple[SiteInfo, ...]):
    """The sites of a model, in a tuple that prints as the tree of `fastcap sites`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "\n".join(to_lines(self)) or "No sites."

    def _repr_html_(self) -> str:
        return html_text(repr(self))


def list_sites(
    model: nn.Module,
    example: Any = None,
    *,
    sites: Sites = "**",
    device: torch.device | str | int | None = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
) -> SiteList:
    """List the sites of a model in model order; with an example batch, also what they produce.

    With an example, one pass runs in eval mode and without gradients. Training flags, hooks,
    buffers and random-number state are restored afterwards, even on an error.

    Args:
        model: Any module.
        example: A batch as `stream` takes it: a dict with `input_ids`, a tensor or a tuple.
        sites: Which modules: names, patterns or module objects. A part after a name is ignored.
            Patterns skip modules without a `forward`, such as `ModuleList`.
        device: Where the example is moved; by default the device of the model's parameters.
        model_inputs: Keys of the example passed to the model by name besides `input_ids`.
        forward: `forward(model, example)` replaces the model call; its tensors are on `device`.

    Returns:
        One value per module: `name`, `type`, `n_calls` and `parts`, each part with `part`, `shape`,
        `dtype` and `bytes_per_sample`. A module the pass does not reach has 0 calls.

    Raises:
        SiteNotFoundError: A site does not name a module of the model.
        BatchError, MissingInputError, DeviceError: The model cannot be called with the example.
        Exception: Whatever the model raises, unchanged.

    Examples:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> [(site.name, site.type) for site in fastcap.list_sites(model)]
        [('', 'Sequential'), ('0', 'Linear'), ('1', 'ReLU')]
        >>> [linear] = fastcap.list_sites(model, torch.ones(4, 2), sites="0")
        >>> [(part.part, part.shape, part.bytes_per_sample) for part in linear.parts]
        [(':output', (4, 3), 12), (':input', (4, 2), 8)]
    """
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module; got {model!r}.")
    bound = bind_sites(model, as_site_names(sites, model))
    modules = {each.site.module: each.module for each in bound}
    if example is None:
        return SiteList(SiteInfo(name, type(module).__name__) for name, module in modules.items())
    call = BatchCaller(model, device, model_inputs, forward)
    batch = call.prepare(example)
    seen = _Observer(list(modules.items()), count_rows(batch))
    with seen.attached(), unchanged(model, call.device), uncompiled(), torch.no_grad():
        call(batch)
    return SiteList(
        SiteInfo(name, type(module).__name__, *seen.at(index))
        for index, (name, module) in enumerate(modules.items())
    )


class _Observer:
    """Receives the inputs and outputs of modules, and keeps what they look like."""

    def __init__(self, modules: Sequence[tuple[str, nn.Module]], n_rows: int | None) -> None:
        self._n_rows = n_rows
        self._sites: list[BoundSite] = []
        for name, module in modules:
            self._sites.append(BoundSite(Site(name, name), module))
            self._sites.append(BoundSite(Site(f"{name}:input", name, side="input"), module))
        self._parts: list[tuple[PartInfo, ...]] = [()] * len(self._sites)
        self._n_calls = [0] * len(self._sites)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        handles = attach(self._sites, self)
        try:
            yield
        finally:
            detach(handles)

    def receive(self, index: int, value: Any) -> None:
        self._n_calls[index] += 1
        site = self._sites[index].site
        self._parts[index] = tuple(
            self._describe(_short(part, value), tensor)
            for part, tensor in tensor_parts(value)
            if _is_capturable(tensor, site)
        )

    def _describe(self, part: str, tensor: Tensor) -> PartInfo:
        shape = tuple(tensor.shape)
        counts_samples = bool(shape) and shape[0] == self._n_rows and shape[0] > 0
        n_bytes = tensor.numel() * tensor.element_size()
        per_sample = n_bytes // shape[0] if counts_samples else None
        return PartInfo(part, shape, tensor.dtype, per_sample)

    def at(self, index: int) -> tuple[int, tuple[PartInfo, ...]]:
        """The calls and the parts of the `index`-th module."""
        of_output, of_input = 2 * index, 2 * index + 1
        return self._n_calls[of_output], self._parts[of_output] + self._parts[of_input]


def _short(part: str, value: Any) -> str:
    """The part as it would be asked for: the first element of a tuple is the default."""
    is_default = isinstance(value, tuple) and part in (":output[0]", ":input[0]")
    return part.removesuffix("[0]") if is_default else part


def _is_capturable(tensor: Tensor, site: Site) -> bool:
    try:
        as_capturable(tensor, site)
    except UnsupportedTensorError:
        return False
    return True
