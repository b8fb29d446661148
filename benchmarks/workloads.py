"""The workloads of the suite: frozen, each beside another from which it differs in one thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import ModelShape, build_llama, build_model
from fastcap.bench import Case, make_case
from fastcap.bench.case import Values
from fastcap.bench.ways import Way


@dataclass(frozen=True, slots=True)
class Workload:
    """One question: these sites, of this model, over these samples.

    Attributes:
        name: What `--only` takes.
        shape: The model.
        n_samples: Samples of one run.
        n_tokens: Tokens of each sample.
        batch_size: Samples per pass.
        sites: Modules whose output is captured; all of the residual width.
        dtype: Of the model, and so of the result.
        positions: The token that is wanted of each sample, or a slice of them; `None` for all.
        device: Where the model is.
        make: Makes the model, the same each time.
    """

    name: str
    shape: ModelShape
    n_samples: int
    n_tokens: int
    batch_size: int
    sites: tuple[str, ...]
    dtype: torch.dtype = torch.float32
    positions: int | slice | None = None
    device: str = "cpu"
    make: Callable[[ModelShape, torch.dtype, str], nn.Module] = build_model

    @property
    def result_bytes(self) -> int:
        """Bytes of all sites' results together."""
        n_tokens = self.n_tokens
        if isinstance(self.positions, int):
            n_tokens = 1
        elif self.positions is not None:
            n_tokens = len(range(n_tokens)[self.positions])
        n_values = self.n_samples * n_tokens * self.shape.width * len(self.sites)
        return n_values * self.dtype.itemsize

    def build(self, model: nn.Module | None = None) -> Case:
        """The same model and token ids for the same workload, in every process; `model` is one that
        `make` has made already.
        """
        if model is None:
            model = self.make(self.shape, self.dtype, self.device)
        generator = torch.Generator().manual_seed(1)
        size = (self.n_samples, self.n_tokens)
        input_ids = torch.randint(self.shape.vocab_size, size, generator=generator)
        batches = [{"input_ids": ids} for ids in torch.split(input_ids, self.batch_size)]
        return make_case(model, batches, self.sites, positions=self.positions, device=self.device)


def blocks(n_layers: int) -> tuple[str, ...]:
    """Every block's output: the residual stream after each layer."""
    return tuple(f"layers.{i}" for i in range(n_layers))


SMALL = ModelShape(n_layers=2, width=64, n_heads=4, hidden=128, vocab_size=128)
MEDIUM = ModelShape(n_layers=8, width=512, n_heads=8, hidden=1376, vocab_size=1024)
# As many parameters per layer as GPT-2 small: its MLP has two matrices of 3072, this one three.
GPT2 = ModelShape(n_layers=12, width=768, n_heads=12, hidden=2048, vocab_size=50257)
LLAMA_7B = ModelShape(n_layers=32, width=4096, n_heads=32, hidden=11008, vocab_size=32000)

ACCEPTANCE = Workload(
    "acceptance",
    MEDIUM,
    n_samples=512,
    n_tokens=256,
    batch_size=32,
    sites=("layers.0.mlp", "layers.3.mlp", "layers.7.mlp"),
)
"""A large result of few sites from a CPU model: isolates the copy into the result, memory's first
touch, and how often the result exists at its peak.
"""


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


# Fixed costs and little else; tests run every workload of it.
TINY = Size("tiny", SMALL, torch.float32, batch_size=4, n_tokens=80, n_passes=3, n_steps=8)
# What a CPU can run, and where a GPU waits for its host: small kernels, many of them.
GPT2_SIZED = Size("gpt2", GPT2, torch.float32, batch_size=4, n_tokens=128, n_passes=2, n_steps=16)
# Compute-bound on a large GPU, with 2.15 GB per pass across the link. float32 needs 27 GB.
LLAMA_SIZED = Size("7b", LLAMA_7B, torch.bfloat16, 8, 1024, 3, 32, needs_bytes=60 << 30)
SIZES = (TINY, GPT2_SIZED, LLAMA_SIZED)


def workloads_of(size: Size, device: str) -> Iterator[Workload]:
    """The seven workloads of a size; `all-sites` is what the others are compared with."""
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
    # As many hooks, almost no bytes: the cost per hook, and whether what is not selected stays.
    yield replace(whole, name=f"{size.name}-last", positions=-1)
    # A strided read of half or less of each value: packing without density.
    yield replace(whole, name=f"{size.name}-slice-64", positions=slice(0, 64))
    # Elements of another size: what costs per element, such as a hidden conversion.
    other = torch.bfloat16 if size.dtype == torch.float32 else torch.float32
    yield replace(whole, name=f"{size.name}-{str(other).removeprefix('torch.')}", dtype=other)
    # One token per sample and pass, as steps of generate() are, without a cache: attention to one
    # token is the least that a pass can be, so hooks show most.
    n_steps = size.batch_size * size.n_steps
    decode = replace(whole, name=f"{size.name}-decode", n_samples=n_steps, n_tokens=1)
    yield decode
    # The same through one block: of decode's cost, what does not grow with the sites.
    yield replace(decode, name=f"{size.name}-decode-one-site", sites=middle)


def grid(device: str, memory_bytes: int | None) -> list[Workload]:
    """What can be measured on a device, small models first."""
    is_cpu = torch.device(device).type == "cpu"
    return [
        workload
        for size in SIZES
        if not size.needs_bytes or (not is_cpu and (memory_bytes or 0) >= size.needs_bytes)
        for workload in workloads_of(size, device)
    ]


# transformers' own way: output_hidden_states=True

LLAMA = ModelShape(n_layers=4, width=64, n_heads=4, hidden=128, vocab_size=128)


def llama_case(device: str, n_passes: int = 3) -> Case:
    """Every block's output but the last's, which transformers gives after the final norm."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(128, (4, 32), generator=generator) for _ in range(n_passes)]
    batches = [{"input_ids": each} for each in ids]
    model = build_llama(LLAMA, torch.float32, device)
    return make_case(model, batches, blocks(LLAMA.n_layers - 1))


def output_hidden_states(device: str) -> Way:
    """Ask the model for every layer's input, and keep what was asked for.

    On a model of its own with the same weights: the first call that asks leaves transformers' hooks
    on the model for good, and they would slow down every other way.
    """
    model = build_llama(LLAMA, torch.float32, device)

    @torch.no_grad()
    def way(case: Case) -> Values:
        return collect_hidden_states(model, case, Tensor.cpu)

    return way


def collect_hidden_states(model: nn.Module, case: Case, move: Any, after: Any = None) -> Values:
    """`output_hidden_states=True`, each state moved to the host after the pass.

    Args:
        model: What is called.
        case: Sites, named `...LAYER`, and batches.
        move: Takes a state to the host.
        after: Called after each pass's moves.
    """
    parts: dict[str, list[Tensor]] = {site: [] for site in case.sites}
    for batch in case.batches:
        output = model(batch["input_ids"].to(case.device), output_hidden_states=True)
        moved = {
            site: move(output.hidden_states[int(site.rpartition(".")[2]) + 1]) for site in parts
        }
        if after is not None:
            after()
        for site, value in moved.items():
            parts[site].append(value)
    return {site: torch.cat(values) for site, values in parts.items()}


def fields_of(workload: Workload) -> dict[str, Any]:
    """A workload in a result file."""
    return {
        "n_layers": workload.shape.n_layers,
        "width": workload.shape.width,
        "n_tokens": workload.n_tokens,
        "batch_size": workload.batch_size,
        "dtype": str(workload.dtype).removeprefix("torch."),
    }
