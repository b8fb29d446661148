"""The models of the grid: transformers' Llama from a config, or those of benchmarks/models.

All weights are random, all are bfloat16, and nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.gpu.toolbox import GiB, Gpu
from benchmarks.models import ModelShape, build_llama, build_model
from benchmarks.workloads import LLAMA_7B, blocks
from fastcap.bench import Case, make_case

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and the batches that it is given.

    Attributes:
        name: What entries are named after: `llama`, `gpt2` or `thin`.
        shape: Its sizes.
        needs_bytes: Free memory of the GPU without which it is left out.
        likely_forward_secs: Of one pass; a prediction.
        likely_launch_secs: Of the host, to issue one pass; a prediction.
        batch_size: Samples per pass.
        n_tokens: Tokens of each sample.
    """

    name: str
    shape: ModelShape
    needs_bytes: int
    likely_forward_secs: float
    likely_launch_secs: float
    batch_size: int = 8
    n_tokens: int = 1024

    @property
    def site_bytes(self) -> int:
        """What one site gives in a pass, all positions."""
        return self.batch_size * self.n_tokens * self.shape.width * DTYPE.itemsize


# Compute-bound: 2.15 GB per pass across the link, behind a forward several times as long.
LLAMA = Subject("llama", LLAMA_7B, 24 * GiB, 0.29, 0.004)
# Small kernels, many of them: link, hooks and forward are about as long.
GPT2_SHAPE = ModelShape(n_layers=12, width=768, n_heads=12, hidden=3072, vocab_size=50257)
GPT2 = Subject("gpt2", GPT2_SHAPE, 4 * GiB, 0.010, 0.003)
# As many bytes as LLAMA from layers that compute next to nothing: the link is the bound.
THIN = Subject("thin", replace(LLAMA_7B, hidden=1, vocab_size=1024), 4 * GiB, 0.0015, 0.0005)


def tiny(subject: Subject) -> Subject:
    """The same, small enough for a dry run."""
    shape = ModelShape(n_layers=3, width=16, n_heads=2, hidden=32, vocab_size=32)
    return replace(subject, shape=shape, batch_size=2, n_tokens=80, needs_bytes=0)


class Scale(nn.Module):
    """One kernel that reads and writes as many bytes as it returns, and changes every value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0625))  # exact in bfloat16

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Thin(nn.Module):
    """Layers that compute next to nothing."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.Sequential(*(Scale(shape.width) for _ in range(shape.n_layers)))

    def forward(self, input_ids: Tensor) -> Tensor:
        output: Tensor = self.layers(self.embedding(input_ids))
        return output


@dataclass(frozen=True, slots=True)
class Built:
    """A subject with its model made.

    Attributes:
        subject: What it was made for.
        model: In eval mode, on the GPU.
        sites: Every block's output.
        origin: Which class it is, and why, where it is not transformers' own.
    """

    subject: Subject
    model: nn.Module
    sites: tuple[str, ...]
    origin: str

    def case(self, gpu: Gpu, n_passes: int, positions: int | slice | None = None) -> Case:
        """The same samples each time; those of fewer passes are the first of those of more."""
        subject, generator = self.subject, torch.Generator().manual_seed(1)
        size = (n_passes, subject.batch_size, subject.n_tokens)
        ids = torch.randint(subject.shape.vocab_size, size, generator=generator)
        batches = [{"input_ids": each} for each in ids]
        return make_case(self.model, batches, self.sites, positions=positions, device=gpu.device)


def build(subject: Subject, gpu: Gpu) -> Built:
    """Make a subject's model; the same each time."""
    reason = ""
    if subject.name == THIN.name:
        torch.manual_seed(0)
        model: nn.Module = Thin(subject.shape).to(gpu.device, DTYPE)
    elif subject.name == GPT2.name:
        model = build_model(subject.shape, DTYPE, gpu.device)
    else:
        try:
            model = build_llama(subject.shape, DTYPE, gpu.device)
        except torch.OutOfMemoryError:  # a stand-in has no room either
            raise
        except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            reason = f" (transformers made none: {why})"
            model = build_model(subject.shape, DTYPE, gpu.device)
    origin = f"{_package(model)}.{type(model).__name__}{reason}"
    return Built(subject, model.eval(), blocks(subject.shape.n_layers), origin)


def _package(model: nn.Module) -> str:
    return type(model).__module__.partition(".")[0]


def is_from_transformers(model: nn.Module) -> bool:
    """Whether it is no stand-in, and has hidden states and a KV cache."""
    return _package(model) == "transformers"
