"""What is captured, from how much: frozen workloads, and the model and samples of one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import fastcap.bench
from benchmarks.models import Decoder, ModelShape, build_model

Sample = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Workload:
    """One question: these sites, of this model, over these samples.

    Attributes:
        name: What `--workload` takes and result files are named after.
        shape: The model.
        n_samples: Samples in the dataset.
        n_tokens: Tokens of each sample.
        batch_size: Samples per pass.
        sites: Modules whose output is captured; all of the residual width.
        dtype: Of the model, and so of the result.
        positions: The one token that is wanted of each sample, or a slice of them; `None` for
            all.
        device: Where the model is.
        limit_secs: When to start no further round of a run, beyond the fewest.
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
    limit_secs: float | None = None

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

    @property
    def needs_cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


def everywhere(n_layers: int) -> tuple[str, ...]:
    """Every block, and the attention and MLP within it."""
    return tuple(
        f"{block}{part}" for block in blocks(n_layers) for part in (".attention", ".mlp", "")
    )


def blocks(n_layers: int) -> tuple[str, ...]:
    """Every block's output: the residual stream after each layer."""
    return tuple(f"layers.{i}" for i in range(n_layers))


SMALL = ModelShape(n_layers=2, width=64, n_heads=4, hidden=128, vocab_size=128)
MEDIUM = ModelShape(n_layers=8, width=512, n_heads=8, hidden=1376, vocab_size=1024)
NARROW = ModelShape(n_layers=4, width=128, n_heads=2, hidden=128, vocab_size=128)
LLAMA_7B = ModelShape(n_layers=32, width=4096, n_heads=32, hidden=11008, vocab_size=32000)

ALL_WORKLOADS = (
    # The whole path at a size where only fixed costs are left: for tests, not for figures.
    Workload("tiny", SMALL, 12, 16, 4, ("layers.0.mlp", "layers.1", "norm")),
    # What the library is accepted by: a large result of few sites from a CPU model. Isolates the
    # copy into the result, memory's first touch, and how often the result exists at its peak.
    Workload("acceptance", MEDIUM, 512, 256, 32, ("layers.0.mlp", "layers.3.mlp", "layers.7.mlp")),
    # A narrow model, every output captured: many bytes for little arithmetic. Isolates the copy,
    # which in the workload above is lost in the noise of the forward.
    Workload("narrow", NARROW, 1024, 256, 64, everywhere(4)),
    # Many sites and almost no bytes. Isolates the cost per hook and per pass, and whether what is
    # not selected is left alone.
    Workload("last-token", MEDIUM, 128, 256, 32, blocks(8), positions=-1),
    # Half the bytes per value and another matrix kernel. Isolates anything that costs per element
    # rather than per byte, such as a hidden conversion to float32.
    Workload(
        "bf16",
        MEDIUM,
        256,
        256,
        32,
        ("layers.0.mlp", "layers.3.mlp", "layers.7.mlp"),
        dtype=torch.bfloat16,
    ),
    # 2.15 GB per pass across the link, behind a compute-bound forward. Isolates whether the copy
    # to the host is hidden, and whether the host keeps up with it. Where first touches are slow,
    # a round takes minutes, so the number of rounds is limited by time.
    Workload(
        "gpu-llama-7b",
        LLAMA_7B,
        32,
        1024,
        8,
        blocks(32),
        dtype=torch.bfloat16,
        device="cuda",
        limit_secs=150,
    ),
)

WORKLOADS = {workload.name: workload for workload in ALL_WORKLOADS}


@dataclass(frozen=True, slots=True)
class Case:
    """A workload with its model built and its samples drawn."""

    workload: Workload
    model: Decoder
    dataset: list[Sample]

    def batches(self) -> Iterator[Sample]:
        """The samples in order, as the documented calls batch them."""
        yield from DataLoader(self.dataset, batch_size=self.workload.batch_size)  # type: ignore[arg-type]

    def question(self) -> fastcap.bench.Case:
        """The same for `fastcap.bench`, with batches that are made already."""
        return fastcap.bench.make_case(
            self.model,
            self.batches(),
            self.workload.sites,
            positions=self.workload.positions,
            device=self.workload.device,
        )


def build_case(workload: Workload) -> Case:
    """The same model and token ids for the same workload, in every process."""
    model = build_model(workload.shape, workload.dtype, workload.device)
    generator = torch.Generator().manual_seed(1)
    size = (workload.n_samples, workload.n_tokens)
    input_ids = torch.randint(workload.shape.vocab_size, size, generator=generator)
    return Case(workload, model, [{"input_ids": row} for row in input_ids])
