"""torch's operators for CUDA tensors, as CPU operators on the same memory, in the order of streams.

torch's own kernels are machine code for a GPU. What is registered here in their place gives the
stand-in an operation that computes the same on the host (`standin_enqueue`), with the result's
memory taken from torch's CUDA allocator as usual. Allocators, streams, events, copies of dense
memory and everything else in torch's CUDA host code are torch's own.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from tests.standin_cuda.controls import library

# Names, each with all its overloads. What is missing here is a kernel that the runtime reports.
NAMES = """
__and__ __or__ _fused_rms_norm _index_put_impl_ _log_softmax _safe_softmax
_scaled_dot_product_efficient_attention _scaled_dot_product_flash_attention _softmax abs add add_
addcdiv addcmul addmm all amax amin angle any arange argmax argsort baddbmm bernoulli_ bitwise_and
bitwise_and_ bitwise_not bitwise_or bitwise_or_ bitwise_xor bmm cat ceil clamp complex
conj_physical copysign cos count_nonzero cumsum div div_ embedding eq erf exp eye fill_ flip floor
floor_divide fmod full_like gather ge gelu gt index index_add_ index_copy_ index_fill_ index_put_
index_select isfinite isinf isnan le lerp linalg_vector_norm linspace log logical_and logical_not
logical_or lt masked_fill masked_fill_ max maximum mean min minimum mm mul mul_ nan_to_num
native_dropout native_layer_norm ne neg norm normal_ pow prod random_ reciprocal relu relu_
remainder roll round rsqrt rsub scatter_ sigmoid sign silu silu_ sin sort sqrt square std sub sub_
sum tanh threshold topk tril tril_ triu triu_ uniform_ var where zero_
"""
OPERATORS = tuple(NAMES.split())

# Those whose result's shape depends on values: they wait for their stream, as on a GPU.
WAITING = ["_unique2", "equal", "is_nonzero", "masked_select", "nonzero", "unique2"]

_Task = Callable[[], object]
_tasks: dict[int, _Task] = {}
_captured: set[int] = set()  # tasks in a CUDA graph, which may run again
_numbers = itertools.count(1)
_dispatches = torch._C._dispatch_has_kernel_for_dispatch_key


@ctypes.CFUNCTYPE(None, ctypes.c_long)  # type: ignore[untyped-decorator]
def _run(number: int) -> None:
    """Called by the runtime, in whichever thread advances the stream."""
    try:
        with torch.inference_mode(False), torch.no_grad(), _disable_current_modes():
            task = _tasks[number] if number in _captured else _tasks.pop(number)
            task()
    except BaseException:  # noqa: BLE001 - nobody above could hear of it
        traceback.print_exc()
        os._exit(77)


def _enqueue(device: torch.device, task: _Task) -> None:
    number = next(_numbers)
    _tasks[number] = task
    if torch.cuda.is_current_stream_capturing():
        _captured.add(number)
    stream = torch.cuda.current_stream(device)
    handle = ctypes.c_void_p(stream.cuda_stream)
    library().standin_enqueue(handle, device.index or 0, _run, ctypes.c_long(number))


class _Memory:
    """Where a CUDA tensor's values are, without holding them: its memory may be freed and reused
    before an operation runs, and finding that out is the point.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.stride = tuple(tensor.shape), tuple(tensor.stride())
        self.offset, self.dtype = tensor.storage_offset(), tensor.dtype
        self.is_conj, self.is_neg = tensor.is_conj(), tensor.is_neg()
        storage = tensor.untyped_storage()
        self.address, self.n_bytes = storage.data_ptr(), storage.nbytes()

    def as_cpu(self) -> Tensor:
        """The same values as a CPU tensor over the same memory."""
        if 0 in self.shape or self.n_bytes == 0:
            view = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        else:
            array = (ctypes.c_uint8 * self.n_bytes).from_address(self.address)
            whole = self.n_bytes - self.n_bytes % self.dtype.itemsize
            values = torch.frombuffer(array, dtype=torch.uint8)[:whole].view(self.dtype)
            view = values.as_strided(self.shape, self.stride, self.offset)
        if self.is_conj:
            view = torch._conj(view)
        return torch._neg_view(view) if self.is_neg else view


def _is_cuda(item: object) -> bool:
    return isinstance(item, Tensor) and item.device.type == "cuda"


def _map(function: Callable[[Any], Any], tree: Any) -> Any:
    """`tree_map` for what arguments and results of operators are made of, several times faster."""
    if type(tree) in (tuple, list):
        return type(tree)(_map(function, item) for item in tree)
    if type(tree) is dict:
        return {key: _map(function, item) for key, item in tree.items()}
    return function(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    if type(tree) in (tuple, list, dict):
        for item in tree.values() if type(tree) is dict else tree:
            yield from _leaves(item)
    else:
        yield tree


def _to_memory(item: Any) -> Any:
    """An argument as the operation keeps it until it runs."""
    if isinstance(item, Tensor):
        return _Memory(item) if _is_cuda(item) else item.detach().clone()
    if isinstance(item, torch.device):
        return torch.device("cpu")
    return None if isinstance(item, torch.Generator) else item


def _from_memory(item: Any) -> Any:
    return item.as_cpu() if isinstance(item, _Memory) else item


def _to_meta(item: Any) -> Any:
    """An argument without values, from which torch tells the result's shape."""
    if _is_cuda(item):
        meta = torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")
        meta = torch._conj(meta) if item.is_conj() else meta
        return torch._neg_view(meta) if item.is_neg() else meta
    if isinstance(item, torch.device):
        return torch.device("meta")
    return None if isinstance(item, torch.Generator) else item


def _device_of(args: Any, kwargs: dict[str, Any]) -> torch.device:
    for item in _leaves((args, kwargs)):
        if _is_cuda(item):
            device: torch.device = item.device
            return device
    asked = kwargs.get("device")
    index = asked.index if asked is not None else None
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)


def _late(operator: Any) -> Callable[..., Any]:
    """An operator that runs when its stream comes to it, and returns memory for the result."""

    def call(*args: Any, **kwargs: Any) -> Any:
        device = _device_of(args, kwargs)
        kept = _map(_to_memory, (args, kwargs))
        metas, meta_kwargs = _map(_to_meta, (args, kwargs))
        result = _map(lambda meta: _empty_like(meta, device), operator(*metas, **meta_kwargs))
        targets = list(_leaves(_map(_to_memory, result)))

        def compute() -> None:
            found_args, found_kwargs = _map(_from_memory, kept)
            found = _leaves(operator(*found_args, **found_kwargs))
            for target, value in zip(targets, found, strict=True):
                if isinstance(target, _Memory):
                    target.as_cpu().copy_(value)

        _enqueue(device, compute)
        return result

    return call


def _empty_like(meta: Any, device: torch.device) -> Any:
    if not isinstance(meta, Tensor) or meta.device.type != "meta":
        return meta
    return torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device=device)


def _in_place(operator: Any, written: list[tuple[int, str]]) -> Callable[..., Any]:
    """An operator that writes some of its arguments, and returns those."""

    def call(*args: Any, **kwargs: Any) -> Any:
        kept = _map(_to_memory, (args, kwargs))

        def compute() -> None:
            found_args, found_kwargs = _map(_from_memory, kept)
            operator(*found_args, **found_kwargs)

        _enqueue(_device_of(args, kwargs), compute)
        results = [kwargs[name] if name in kwargs else args[index] for index, name in written]
        return results[0] if len(results) == 1 else tuple(results)

    return call


def _waiting(operator: Any) -> Callable[..., Any]:
    """An operator that waits for its stream, because its result's shape depends on values."""

    def call(*args: Any, **kwargs: Any) -> Any:
        device = _device_of(args, kwargs)
        torch.cuda.current_stream(device).synchronize()
        found_args, found_kwargs = _map(_from_memory, _map(_to_memory, (args, kwargs)))
        found = operator(*found_args, **found_kwargs)
        return _map(lambda item: item.to(device) if isinstance(item, Tensor) else item, found)

    return call


def _copier(original: Any) -> Callable[..., Tensor]:
    """`copy_`: torch's own for what is a copy of bytes, an operation where a kernel would run."""
    cuda_keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def copy_(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if _is_cuda(self) and _is_cuda(source) and self.device == source.device:
            if self.numel() and not _is_copy_of_bytes(self, source):
                target, values = _Memory(self), _Memory(source)
                _enqueue(self.device, lambda: target.as_cpu().copy_(values.as_cpu()))
                return self
        elif _is_cuda(source) and not _is_cuda(self) and self.dtype == source.dtype:
            source = _dense(source, self.shape)
        result: Tensor = original.call_boxed(cuda_keys, self, source, non_blocking)
        return result

    return copy_


def _dense(source: Tensor, shape: torch.Size) -> Tensor:
    """Made dense on the device before a copy to the host, as torch's own does with a kernel."""
    if source.numel() == 0 or source.is_contiguous():
        return source
    return source.expand(shape).contiguous()


def _is_copy_of_bytes(target: Tensor, source: Tensor) -> bool:
    return (
        target.dtype == source.dtype
        and target.is_conj() == source.is_conj()
        and target.is_neg() == source.is_neg()
        and target.shape == source.shape
        and target.is_contiguous()
        and source.is_contiguous()
    )


def _make(operator: Any, waits: bool) -> Callable[..., Any]:
    arguments = enumerate(operator._schema.arguments)
    written = [(i, a.name) for i, a in arguments if a.alias_info and a.alias_info.is_write]
    if written:
        return _in_place(operator, written)
    return _waiting(operator) if waits else _late(operator)


def _has_a_kernel_of_its_own(operator: Any) -> bool:
    """Whether torch runs a CUDA kernel for it, and does not compose it of other operators."""
    name = operator.name()
    try:
        if _dispatches(name, "CompositeImplicitAutograd"):
            return False
        return bool(_dispatches(name, "CUDA") or _dispatches(name, "CompositeExplicitAutograd"))
    except RuntimeError:  # an overload for Python numbers, which is not dispatched
        return False


_registered: list[torch.library.Library] = []  # held: they end with their object


def install() -> None:
    """Give torch the operators; called once torch has been imported.

    It does not ask torch whether there is CUDA: that alone forbids CUDA in a forked process.
    """
    if _registered or torch.version.cuda is None:
        return
    registry: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    _registered.append(registry)
    original = torch.library.get_kernel("aten::copy_", "CUDA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are overridden is the point
        registry.impl("copy_", _copier(original), "CUDA")
        for name in (*OPERATORS, *WAITING):
            packet = getattr(torch.ops.aten, name, None)
            for overload in packet.overloads() if packet is not None else ():
                operator = getattr(packet, overload)
                if _has_a_kernel_of_its_own(operator):
                    full_name = operator.name().removeprefix("aten::")
                    registry.impl(full_name, _make(operator, name in WAITING), "CUDA")
