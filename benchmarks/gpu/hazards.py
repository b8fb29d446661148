"""Ways of copying that go wrong, with the window held open: how often, and how often fastcap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import fastcap
from benchmarks.gpu.figures import Figure, Range
from benchmarks.gpu.toolbox import Gpu, Sizes
from fastcap.devices import accelerator
from fastcap.reference import ReferenceStore, differences

WIDTH = 256
N_LAYERS = 8
CORRUPT = 0xAB
N_OTHERS = 64  # 4 MiB: more than what is free in the allocator's segments of small blocks


def conjugated(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """A lazily conjugated tensor to pinned memory, read after its event."""
    values = torch.randn(WIDTH, WIDTH, dtype=torch.complex64, device=gpu.device)
    expected = values.cpu().conj().resolve_conj()
    target = gpu.pinned(values.nbytes, torch.complex64).view(values.shape)
    n_wrong = 0
    for _ in range(sizes.attempts):
        target.zero_()
        gpu.sleep(sizes.sleep_secs / 10)
        target.copy_(values.conj(), non_blocking=True)
        gpu.mark().synchronize()
        n_wrong += not torch.equal(target, expected)
    yield Figure("wrong", 100 * n_wrong / sizes.attempts, "% of attempts", Range(1, 100))


class InPlace(nn.Module):
    """Changes what the layer before it returned."""

    def forward(self, acts: Tensor) -> Tensor:
        result = acts * 2
        acts.fill_(-1)
        return result


def changed_in_place(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """The model changes a value in place while its copy has not begun."""
    attempt = partial(_copy_late, gpu, sizes, change=lambda value: value.add_(1), keeps=True)
    yield _share("straight from the model's tensor, wrong", sizes, attempt, Range(100, 100))
    yield _share("fastcap, wrong", sizes, partial(_fastcap_is_wrong, gpu, sizes), Range(0, 0))


def freed_too_early(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """The model drops a value, and the allocator hands its memory out, before the copy."""
    dropped = partial(_copy_late, gpu, sizes)
    yield _share("no reference kept, wrong", sizes, dropped, Range(100, 100))
    kept = partial(_copy_late, gpu, sizes, keeps=True)
    yield _share("reference kept until the event, wrong", sizes, kept, Range(0, 0))


def _share(name: str, sizes: Sizes, is_wrong: Callable[[], bool], predicted: Range) -> Figure:
    n_wrong = sum(is_wrong() for _ in range(sizes.attempts))
    return Figure(name, 100 * n_wrong / sizes.attempts, "% of attempts", predicted)


def _copy_late(
    gpu: Gpu,
    sizes: Sizes,
    change: Callable[[Tensor], object] = lambda value: None,
    keeps: bool = False,
) -> bool:
    """Copy a value on a stream that sleeps first, and see whether something else arrived."""
    gpu.synchronise()
    value = gpu.random(WIDTH * WIDTH)
    expected = value.cpu().clone()
    target = gpu.pinned(value.nbytes)
    side = gpu.side_stream()
    with gpu.cuda.stream(side):
        gpu.sleep(sizes.sleep_secs / 5)
        target.copy_(value, non_blocking=True)
    change(value)
    kept = value if keeps else None
    del value
    others = [
        torch.full((WIDTH * WIDTH,), CORRUPT, dtype=torch.uint8, device=gpu.device)
        for _ in range(N_OTHERS)
    ]
    gpu.synchronise()
    del kept, others
    return not torch.equal(target, expected)


def _fastcap_is_wrong(gpu: Gpu, sizes: Sizes) -> bool:
    layers = [nn.Linear(WIDTH, WIDTH) if i % 2 == 0 else InPlace() for i in range(N_LAYERS)]
    model = nn.Sequential(*layers).to(gpu.device)
    sites = [str(layer) for layer in range(0, N_LAYERS, 2)]
    with (
        torch.no_grad(),
        fastcap.ActivationStore(model, sites) as store,
        ReferenceStore(model, sites) as oracle,
    ):
        acts = torch.randn(WIDTH, WIDTH, device=gpu.device)
        with gpu.cuda.stream(accelerator._copy_stream(acts.device)):
            gpu.sleep(sizes.sleep_secs / 5)
        model(acts)
        return bool(differences(oracle.activations, store.activations))
