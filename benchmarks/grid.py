"""The workloads of the suite: frozen, each beside the one it differs from in one thing.

Every size of model has the same seven. `all-sites` is the one that the others are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.models import ModelShape
from benchmarks.workloads import LLAMA_7B, SMALL, Workload, blocks

GPT2 = ModelShape(n_layers=12, width=768, n_heads=12, hidden=2048, vocab_size=50257)
"""As many parameters per layer as GPT-2 small: its MLP has two matrices of 3072, this one three."""


@dataclass(frozen=True, slots=True)
class Size:
    """A model, and how much of it is run.

    Attributes:
        name: What workloads are named after.
        shape: The model.
        dtype: Its dtype, and that of the values.
        batch_size: Samples per pass.
        n_tokens: Tokens of each sample in prefill.
        n_passes: Passes of one run in prefill.
        n_steps: Passes of one run in decode, each of one token.
        needs_bytes: Accelerator memory that the workloads take; 0 where the CPU will do.
    """

    name: str
    shape: ModelShape
    dtype: torch.dtype
    batch_size: int
    n_tokens: int
    n_passes: int
    n_steps: int
    needs_bytes: int = 0

    @property
    def other_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == torch.float32 else torch.float32


TINY = Size("tiny", SMALL, torch.float32, batch_size=4, n_tokens=80, n_passes=3, n_steps=8)
"""Fixed costs and little else; for tests, which run every workload of it."""

GPT2_SIZED = Size("gpt2", GPT2, torch.float32, batch_size=4, n_tokens=128, n_passes=2, n_steps=16)
"""What a CPU can run, and where a GPU waits for its host: small kernels, many of them."""

LLAMA_SIZED = Size(
    "7b",
    LLAMA_7B,
    torch.bfloat16,
    batch_size=8,
    n_tokens=1024,
    n_passes=3,
    n_steps=32,
    needs_bytes=60 << 30,
)
"""Compute-bound on a large GPU, with 2.15 GB per pass across the link. float32 needs 27 GB."""

SIZES = (TINY, GPT2_SIZED, LLAMA_SIZED)


def workloads(size: Size, device: str) -> Iterator[Workload]:
    """The seven workloads of a size."""
    sites = blocks(size.shape.n_layers)
    whole = Workload(
        f"{size.name}-all-sites",
        size.shape,
        size.batch_size * size.n_passes,
        size.n_tokens,
        size.batch_size,
        sites,
        size.dtype,
        device=device,
    )
    # Every position of every block: the most bytes. Isolates copies, and memory's first touch.
    yield whole
    # One block in the middle: what a pass costs when almost nothing is captured.
    middle = (sites[len(sites) // 2],)
    yield replace(whole, name=f"{size.name}-one-site", sites=middle)
    # As many hooks, almost no bytes. Isolates the cost per hook, and whether what is not selected
    # stays where it is.
    yield replace(whole, name=f"{size.name}-last", positions=-1)
    # A strided read of half or less of each value. Isolates packing without density.
    yield replace(whole, name=f"{size.name}-slice-64", positions=slice(0, 64))
    # The same values in elements of another size. Isolates what costs per element, such as a
    # hidden conversion.
    other = str(size.other_dtype).removeprefix("torch.")
    yield replace(whole, name=f"{size.name}-{other}", dtype=size.other_dtype)
    # One token per sample and pass, as steps of generate() are, without a cache: attention to
    # one token is the least that a pass can be, so hooks show most. Isolates their cost in time.
    n_steps = size.batch_size * size.n_steps
    yield replace(whole, name=f"{size.name}-decode", n_samples=n_steps, n_tokens=1)
    # The same through one block: of decode's cost, what does not grow with the sites.
    yield replace(
        whole, name=f"{size.name}-decode-one-site", n_samples=n_steps, n_tokens=1, sites=middle
    )


def grid(device: str, memory_bytes: int | None) -> list[Workload]:
    """What can be measured on a device, small models first."""
    is_cpu = torch.device(device).type == "cpu"
    return [
        workload
        for size in SIZES
        if not size.needs_bytes or (not is_cpu and (memory_bytes or 0) >= size.needs_bytes)
        for workload in workloads(size, device)
    ]
