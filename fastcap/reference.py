"""The oracle: a slow, plain implementation that every capture must match bit for bit.

Hook, select, detach, clone to the CPU; lists and `cat`. It is synchronous, keeps everything and
shares only the question (`fastcap.spec`) with the engine: no hook helper, no selection code, no
memory management. Slow on purpose, and short enough to be checked by reading.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastcap.spec import Selection, Site, Step, parse_site

Call = Any
"""`(model, batch) -> anything`: how one batch becomes one pass."""


class ReferenceStore:
    """The observable behaviour of `ActivationStore`, with every copy made at once in the hook.

    Sites are names as `model.named_modules()` has them, with any part; a pattern is written out.

    Attributes:
        activations: The value of each site's last call.
        calls: The values of all its calls since `clear`.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3))
        >>> with ReferenceStore(model, ["0"]) as oracle:
        ...     _ = model(torch.ones(4, 2))
        >>> oracle.get("0").shape
        torch.Size([4, 3])
    """

    def __init__(
        self, model: nn.Module, layers: Iterable[str], selection: Selection | None = None
    ) -> None:
        self.model = model
        self.sites = [parse_site(layer) for layer in layers]
        self.selection = selection or Selection()
        self.activations: dict[str, Tensor] = {}
        self.calls: dict[str, list[Tensor]] = {}
        self.n_turns: dict[str, int] = {}
        self.of_batch: Tensor | None = None
        self._of_call: Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def enable(self) -> None:
        if self.selection.needs_mask:
            hook = self.model.register_forward_pre_hook(self._read_mask, with_kwargs=True)
            self._handles.append(hook)
        if any(site.call is not None for site in self.sites):
            self._handles.append(self.model.register_forward_pre_hook(self._begin))
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for site in self.sites:
            module = modules[site.module]
            if site.side == "input":
                hook = self._input_hook_for(site)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                self._handles.append(module.register_forward_hook(self._hook_for(site)))

    def disable(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        self.activations = {}
        self.calls = {}

    def get(self, site: str) -> Tensor | None:
        return self.activations.get(site)

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()

    def _hook_for(self, site: Site) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._keep(site, take_part(output, site))

        return hook

    def _input_hook_for(self, site: Site) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(site, take_input(module, args, kwargs, site))

        return hook

    def _begin(self, model: nn.Module, args: Any) -> None:
        self.n_turns = {}

    def _keep(self, site: Site, value: Tensor | None) -> None:
        turn = self.n_turns[site.name] = self.n_turns.get(site.name, -1) + 1
        if value is not None and site.call in (None, -1, turn):
            of_samples = self._of_call if self.of_batch is None else self.of_batch
            acts = take_selection(value, self.selection, of_samples)
            self.activations[site.name] = acts
            self.calls.setdefault(site.name, []).append(acts)

    def _read_mask(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        arguments = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        mask = arguments.get("attention_mask")
        self._of_call = None if mask is None else mask.clone()


def take_part(output: Any, site: Site) -> Tensor | None:
    """The tensor a site stands for in a module's output, or `None` where there is none."""
    if not site.steps:
        if isinstance(output, tuple) and output:
            output = output[0]
        return output if isinstance(output, Tensor) else None
    return follow(output, site.steps)


def take_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], site: Site
) -> Tensor | None:
    """The tensor a site stands for in the arguments of a call, or `None` where there is none."""
    if not site.steps:
        tensors = [value for value in kwargs.values() if isinstance(value, Tensor)]
        value = [*args, *tensors, None][0]
        return value if isinstance(value, Tensor) else None
    (kind, which), *rest = site.steps
    if kind == "index":
        return follow(args, site.steps)
    given = {}
    for parameter, value in zip(
        inspect.signature(module.forward).parameters.values(), args, strict=False
    ):
        if parameter.kind is parameter.VAR_POSITIONAL:
            break
        given[parameter.name] = value
    return follow({**given, **kwargs}.get(str(which)), rest)


def follow(value: Any, steps: Iterable[Step]) -> Tensor | None:
    """The tensor at the end of some steps, or `None` where they lead nowhere."""
    for kind, which in steps:
        if kind == "index" and isinstance(value, dict) and which not in value:
            which = str(which)
        if isinstance(value, Tensor) and kind != "attribute":
            return None
        try:
            value = getattr(value, str(which)) if kind == "attribute" else value[which]
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
    return value if isinstance(value, Tensor) else None


def take_selection(value: Tensor, selection: Selection, of_samples: Tensor | None = None) -> Tensor:
    """Samples first; positions, then `reduce`, then a contiguous clone on the CPU.

    `dtype` narrows before the clone and widens after it: a host and a GPU that convert the same NaN
    make different NaNs of it, so where it is converted is part of the question.

    `of_samples` is the mask, or the positions of each sample, if the selection asks for such.
    """
    with torch.no_grad(), torch.inference_mode(False):
        value = value.detach()
        value = torch.nested.to_padded_tensor(value, 0) if value.is_nested else value
        order = list(range(value.ndim))
        order = [order.pop(selection.batch_dim), *order] if order else order
        value = value.permute(order)
        dim = 1 if selection.seq_dim is None else selection.seq_dim
        if selection.by_sample is not None:
            of_samples = torch.tensor(selection.by_sample)
        dtype = value.dtype
        if dtype.itemsize == 1 and dtype.is_floating_point and selection.reduce != "mean":
            value = value.view(torch.int8)  # not every torch indexes float8
        if of_samples is not None:
            value = take_of_samples(value, dim % value.ndim, selection, of_samples)
        elif selection.positions is not None:
            positions = selection.positions
            index: Any = list(positions) if isinstance(positions, tuple) else positions
            value = value.movedim(dim, 0)[index]
            if not isinstance(positions, int):
                value = value.movedim(0, dim)
        value = value.view(dtype) if value.dtype == torch.int8 else value
        if callable(selection.reduce):
            value = selection.reduce(value)
        value = value.resolve_conj().resolve_neg()
        wanted = selection.dtype or value.dtype
        if wanted.itemsize <= value.dtype.itemsize:
            value = value.to(wanted)
        on_host = torch.empty(value.shape, dtype=value.dtype, device="cpu").copy_(value)
        return on_host.to(wanted)


def take_of_samples(value: Tensor, dim: int, selection: Selection, of_samples: Tensor) -> Tensor:
    """Sample by sample, with loops over `of_samples` in Python."""
    rows = of_samples.tolist()
    if selection.reduce == "mean":
        return _mean(value, dim, rows, keep=selection.dtype is not None)
    samples = [sample.movedim(dim - 1, 0) for sample in value]
    if not selection.needs_mask:
        taken = torch.stack([sample[row] for sample, row in zip(samples, rows, strict=True)])
        return taken if of_samples.ndim == 1 else taken.movedim(1, dim)
    real = [[i for i, is_real in enumerate(row) if is_real] for row in rows]
    if selection.positions == "last":
        return torch.stack([sample[row[-1]] for sample, row in zip(samples, real, strict=True)])
    return torch.cat([sample[row] for sample, row in zip(samples, real, strict=True)])


def _mean(value: Tensor, dim: int, rows: list[list[int]], keep: bool) -> Tensor:
    """Padding set to zero one token at a time, then one sum. As `reduce`, on the value's device."""
    precise = {
        torch.float64: torch.float64,
        torch.complex32: torch.complex64,
        torch.complex64: torch.complex64,
        torch.complex128: torch.complex128,
    }.get(value.dtype, torch.float32)
    zeroed = value.to(torch.float32) if value.dtype.itemsize == 1 else value
    zeroed = zeroed.clone(memory_format=torch.contiguous_format)
    for sample, row in enumerate(rows):
        for position, is_real in enumerate(row):
            if not is_real:
                zeroed[sample].select(dim - 1, position).zero_()
    total = zeroed.sum(dim, dtype=precise)
    n_real = torch.tensor([sum(row) for row in rows], device=value.device)
    mean = total / n_real.view(-1, *[1] * (total.ndim - 1))
    return mean if keep else mean.to(value.dtype)


def stream(
    model: nn.Module,
    batches: Iterable[Any],
    sites: Sequence[str],
    call: Call,
    selection: Selection | None = None,
) -> Iterator[dict[str, Tensor]]:
    """One dict of values per batch, sites in the order asked."""
    store = ReferenceStore(model, sites, selection)
    for batch in batches:
        store.of_batch = _of_batch(batch, store.selection)
        with store, torch.no_grad():
            call(model, batch)
        yield {site.name: store.activations[site.name] for site in store.sites}
        store.clear()


def _of_batch(batch: Any, selection: Selection) -> Tensor | None:
    if selection.batch_key is not None:
        return batch[selection.batch_key]  # type: ignore[no-any-return]
    is_mapping = selection.needs_mask and isinstance(batch, Mapping)
    return batch.get("attention_mask") if is_mapping else None


def extract(
    model: nn.Module,
    batches: Iterable[Any],
    sites: Sequence[str],
    call: Call,
    max_samples: int | None = None,
    selection: Selection | None = None,
) -> dict[str, Tensor]:
    """Every batch's values, concatenated and cropped to `max_samples` rows."""
    parts: dict[str, list[Tensor]] = {}
    n_samples = 0
    for values in stream(model, batches, sites, call, selection):
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
        n_samples += len(next(iter(values.values())))
        if max_samples is not None and n_samples >= max_samples:
            break
    return {name: torch.cat(values)[:max_samples] for name, values in parts.items()}


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What differs between two results, in words: names, order, shape, dtype, layout, bytes.

    Bytes are compared, so NaN payloads and the sign of zero count.
    """
    if list(expected) != list(found):
        return [f"sites {list(found)}, expected {list(expected)}"]
    problems: list[str] = []
    for name, want in expected.items():
        problems += [f"{name}: {problem}" for problem in _tensor_differences(want, found[name])]
    return problems


def _tensor_differences(want: Tensor, got: Tensor) -> list[str]:
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return [
            f"{tuple(got.shape)} {got.dtype}, expected {tuple(want.shape)} {want.dtype}",
        ]
    flaws = {
        "not on the CPU": got.device.type != "cpu",
        "not contiguous": not got.is_contiguous(),
        "attached to a graph": got.requires_grad,
        "an inference-mode tensor": got.is_inference(),
        "a subclass": type(got) is not Tensor,
    }
    problems = [flaw for flaw, present in flaws.items() if present]
    n_different = int(torch.count_nonzero(_as_bytes(want) != _as_bytes(got)))
    return problems + ([f"{n_different} bytes differ"] if n_different else [])


def _as_bytes(value: Tensor) -> Tensor:
    with torch.inference_mode(False):
        if value.numel() == 0:  # strides of empty tensors may be anything, and a view minds
            return torch.empty(0, dtype=torch.uint8)
        return value.contiguous().reshape(-1).view(torch.uint8)
