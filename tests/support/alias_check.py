"""Whether a site alias names what a block adds to its input: compared by value in a tiny model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcap.errors import SiteNotFoundError
from fastcap.huggingface.aliases import find_places
from fastcap.huggingface.verdicts import REFUSED, UNVERIFIED, VERIFIED, Place, class_key
from tests.support.tiny_models import N_SAMPLES

KINDS = ("residual", "attention", "mlp")
TOLERANCE, LEAST = 2e-5, 1e-3
FIRST, LAST = 4, 4
"""The first and last blocks of a model that are looked at."""
UNREACHED = "unreached"
OTHER_ROWS = "its first dimension is not that of the samples"

Verdict = tuple[str, str]
"""One of the four, and what there is to say of it."""

Found = dict[str, dict[str, dict[str, Verdict]]]
"""Verdicts by class of block, alias and the module's path inside the block."""


class Call(NamedTuple):
    """What a module was called with and returned: the first tensor of each."""

    path: str
    taken: Tensor | None
    returned: Tensor | None


Trace = list[Call]


def check(model: nn.Module, inputs: dict[str, Tensor] | None) -> tuple[Found, dict[str, str]]:
    """Verdicts on every place that aliases lead to, and why those that lead nowhere do not."""
    found: dict[str, dict[str, dict[str, list[Verdict]]]] = {}
    nowhere: dict[str, str] = {}
    probe = None if inputs is None else Probe(model, inputs)
    for kind in KINDS:
        try:
            places, _ = find_places(model, kind)
        except SiteNotFoundError as error:
            nowhere[kind] = "no blocks" if "No blocks" in str(error) else "no such module"
            continue
        for place in places[:FIRST] + places[FIRST:][-LAST:]:
            verdict = (UNREACHED, "not run") if probe is None else probe.verdict(place)
            of_class = found.setdefault(class_key(type(place.block)), {})
            of_class.setdefault(kind, {}).setdefault(place.inside, []).append(verdict)
    merged: Found = {
        key: {
            kind: {inside: merge(verdicts) for inside, verdicts in insides.items()}
            for kind, insides in kinds.items()
        }
        for key, kinds in found.items()
    }
    return merged, nowhere


def merge(verdicts: list[Verdict]) -> Verdict:
    """One verdict of what several blocks or models say of one place."""
    reached = [verdict for verdict in verdicts if verdict[0] != UNREACHED] or verdicts
    kinds = {verdict for verdict, _ in reached}
    if len(kinds) == 1:
        return min(reached, key=lambda verdict: (len(verdict[1]), verdict[1]))
    if (REFUSED, OTHER_ROWS) in reached:  # however it may be where there is one window, one chunk
        return REFUSED, OTHER_ROWS
    kind = REFUSED if REFUSED in kinds else UNVERIFIED
    failed = min(detail for verdict, detail in reached if verdict == kind)
    if VERIFIED in kinds:
        return UNVERIFIED, f"not in every configuration: {failed}"
    return kind, failed


class Probe:
    """Passes of one model: as it is, without the blocks' weights, and with one part silenced."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        self._model, self._inputs = model, inputs
        self._norms = {path for path, module in model.named_modules() if is_norm(module)}
        self._simple = {path for path, module in model.named_modules() if is_simple(module)}
        self._parts = [place.path for kind in KINDS[1:] for place in places_or_none(model, kind)]
        self._usual = self._run()
        with without_weights(place.block for place in places_or_none(model, "residual")):
            self._zeroed = self._run()

    def _run(self, silenced: str | None = None) -> Trace:
        """One pass; the output of the silenced module is replaced by zeros."""
        trace: Trace = []
        handles = []
        taken: dict[str, list[Tensor | None]] = defaultdict(list)

        def before(path: str) -> Callable[..., None]:
            return lambda _module, args, kwargs: taken[path].append(
                first_tensor([*args, kwargs.get("hidden_states"), *kwargs.values()])
            )

        def after(path: str) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
                output = zeroed(output) if path == silenced else output
                trace.append(Call(path, taken[path].pop(), first_tensor(output)))
                return output

            return hook

        for path, module in self._model.named_modules():
            handles += [
                module.register_forward_pre_hook(before(path), with_kwargs=True),
                module.register_forward_hook(after(path)),
            ]
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                self._model(**self._inputs)
        finally:
            for handle in handles:
                handle.remove()
        return trace

    def verdict(self, place: Place) -> Verdict:
        """What the passes say of one place."""
        path = place.path.removesuffix(place.inside).rstrip(".")
        blocks = [call for call in self._usual if call.path == path]
        calls = [call for call in self._usual if call.path == place.path]
        if not blocks:
            return UNREACHED, "the pass does not reach the block"
        if not calls:
            return REFUSED, "a pass that runs the block never calls it"
        if len(calls) > 1:
            return UNVERIFIED, "called more than once in a pass"
        return self._by_value(place, path, blocks[0], calls[0].returned)

    def _by_value(self, place: Place, path: str, block: Call, value: Tensor | None) -> Verdict:
        if block.taken is None or value is None:
            return UNVERIFIED, "no tensor among what it takes or returns"
        if not value.isfinite().all():
            return UNVERIFIED, "not finite with random weights"
        if value.shape[0] != N_SAMPLES:
            return (REFUSED if block.taken.shape[0] == N_SAMPLES else UNVERIFIED), OTHER_ROWS
        if place.kind == "residual":
            return self._residual(path, block)
        return self._part(place, path, value)

    def _residual(self, path: str, block: Call) -> Verdict:
        """Without weights, the block returns its input, or the norm of it."""
        stack, _, index = path.rpartition(".")
        following = first_call(self._usual, f"{stack}.{int(index) + 1}")
        if following and not same(following.taken, block.returned):
            return UNVERIFIED, "the next block takes another value"
        unweighted = first_call(self._zeroed, path)
        if unweighted is None or unweighted.taken is None:
            return UNVERIFIED, "without weights, the pass takes another way"
        if not unweighted.taken.any():
            return UNREACHED, "without weights, nothing reaches the block"
        reached = self._normed(path, unweighted.taken)
        if same(unweighted.returned, reached[0]):
            return VERIFIED, ""
        if any(same(unweighted.returned, value) for value in reached):
            return VERIFIED, "after the block's norm"
        return UNVERIFIED, "without weights, the block does not return its input"

    def _part(self, place: Place, path: str, value: Tensor) -> Verdict:
        """Silencing the part takes its value, and nothing else, out of the residual stream."""
        silent = self._run(silenced=place.path)
        stream = list(self._stream(silent, path, place.path))
        sums = [
            (whole, rest)
            for whole, rest in self._changed(silent, path)
            if any(same(rest, known) for known in stream)
        ]
        for through, form in self._forms(path, value):
            for whole, rest in sums:
                if not alike(form, rest) or form.abs().max() < LEAST * rest.abs().max():
                    continue
                form = form.reshape(rest.shape)
                if same(whole, rest + form):
                    return VERIFIED, f"before `{through}`" if through else ""
                scale = channel_scale(whole - rest, form)
                if same(whole, rest + scale * form):
                    is_one = same(scale, scale.mean().expand_as(scale))
                    by = f"{float(scale.mean()):.3g}" if is_one else "a scale of each channel"
                    return VERIFIED, f"before it is multiplied by {by}"
        unweighted, block = first_call(self._zeroed, place.path), first_call(self._zeroed, path)
        stream = [] if block is None or block.taken is None else self._normed(path, block.taken)
        if (
            unweighted
            and stream
            and stream[0].any()
            and any(same(unweighted.returned, each) for each in stream)
        ):
            return REFUSED, "its value includes the residual stream"
        return UNVERIFIED, "no sum of it with the residual stream is seen"

    def _forms(self, path: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The value as it is, and what a norm or a scale in the block that takes it makes of it."""
        yield "", value
        for call in self._usual:
            if call.path in self._simple and same(call.taken, value):
                is_inside = call.path.startswith(f"{path}.")
                if is_inside and call.returned is not None and not same(call.returned, value):
                    yield call.path.removeprefix(f"{path}."), call.returned

    def _changed(self, silent: Trace, path: str) -> Iterator[tuple[Tensor, Tensor]]:
        """What differs between the two passes: the block's output, what modules in it take."""
        for usual, other in zip(self._usual, silent, strict=False):
            if usual.path == other.path == path:
                pair = (usual.returned, other.returned)
            elif usual.path == other.path and usual.path.startswith(f"{path}."):
                pair = (usual.taken, other.taken)
            else:
                continue
            whole, rest = pair
            if whole is None or rest is None or whole.shape != rest.shape:
                continue
            if not same(whole, rest) and rest.abs().max() > 0:
                yield whole, rest

    def _stream(self, trace: Trace, path: str, silenced: str) -> Iterator[Tensor]:
        """Values of the residual stream in a block: its input, plus a part, and around norms.

        Norms count only before the silenced module has returned: what is looked at is not its own
        proof.
        """
        block = first_call(trace, path)
        if block is None or block.taken is None:
            return
        yield block.taken
        inside = [call for call in trace if call.path.startswith(f"{path}.")]
        paths = [call.path for call in inside]
        end = paths.index(silenced) if silenced in paths else -1
        for number, call in enumerate(inside):
            value = call.returned
            is_other_part = call.path in self._parts and call.path != silenced
            if is_other_part and value is not None and value.shape == block.taken.shape:
                yield block.taken + value
            if number > end:
                continue
            if call.path in self._parts and call.taken is not None:
                yield call.taken  # where no norm comes before the part
            if call.path in self._norms:
                yield from (each for each in (call.taken, value) if each is not None)

    def _normed(self, path: str, start: Tensor) -> list[Tensor]:
        """What norms of the block make of a value in the pass without weights; it comes first."""
        reached = [start]
        for call in self._zeroed:
            is_norm_inside = call.path in self._norms and call.path.startswith(f"{path}.")
            if is_norm_inside and any(same(call.taken, each) for each in reached):
                reached += [] if call.returned is None else [call.returned]
        return reached


def places_or_none(model: nn.Module, kind: str) -> list[Place]:
    try:
        return find_places(model, kind)[0]
    except SiteNotFoundError:
        return []


@contextmanager
def without_weights(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """All weights of the blocks are zero, but for those of their norms."""
    kept = [
        (parameter, parameter.detach().clone())
        for block in blocks
        for module in block.modules()
        if not is_norm(module)
        for parameter in module.parameters(recurse=False)
    ]
    with torch.no_grad():
        for parameter, _ in kept:
            parameter.zero_()
        try:
            yield
        finally:
            for parameter, weights in reversed(kept):
                parameter.copy_(weights)


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def is_simple(module: nn.Module) -> bool:
    """Whether a module has no matrices, as norms and scales."""
    return all(parameter.ndim < 2 for parameter in module.parameters())


def first_call(trace: Trace, path: str) -> Call | None:
    return next((call for call in trace if call.path == path), None)


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two values are equal up to rounding."""
    if one is None or other is None or not alike(one, other):
        return False
    return bool((one.reshape(other.shape) - other).abs().max() <= TOLERANCE * other.abs().max())


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two values have the same shape, or would have as rows of one width."""
    return one.shape[-1:] == other.shape[-1:] and 0 < one.numel() == other.numel()


def channel_scale(change: Tensor, form: Tensor) -> Tensor:
    """The number for each channel by which a value becomes a change, were it so."""
    rows, of = change.flatten(0, -2), form.flatten(0, -2)
    return (rows * of).sum(0) / (of * of).sum(0).clamp_min(1e-30)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floats in a value, copied, as later changes in place are not of it."""
    if isinstance(value, Tensor):
        return value.detach().float().clone() if value.is_floating_point() else None
    values = value.values() if isinstance(value, Mapping) else value
    if isinstance(values, str) or not isinstance(values, Iterable):
        return None
    return next((found for found in map(first_tensor, values) if found is not None), None)


def zeroed(value: Any) -> Any:
    """An output whose first tensor is zeros."""
    if isinstance(value, Tensor):
        return torch.zeros_like(value)
    if isinstance(value, tuple | list) and value:
        return type(value)([zeroed(value[0]), *value[1:]])
    if isinstance(value, Mapping) and value:
        first = next(iter(value))
        return type(value)(**{**value, first: zeroed(value[first])})
    return value
