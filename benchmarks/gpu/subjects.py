"""The models of the grid: transformers' Llama from a config, or those of benchmarks/models.

All weights are random, all are bfloat16, and nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.gpu.report import describe_error
from benchmarks.models import ModelShape, build_llama, build_model
from benchmarks.workloads import GPT2_SIZED, LLAMA_SIZED, Workload, workloads_of


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


def make_thin(shape: ModelShape, dtype: torch.dtype, device: str) -> nn.Module:
    torch.manual_seed(0)
    return Thin(shape).to(device, dtype).eval()


def make_llama(shape: ModelShape, dtype: torch.dtype, device: str) -> nn.Module:
    """The model of transformers, or a stand-in of its sizes where transformers makes none."""
    try:
        return build_llama(shape, dtype, device)
    except torch.OutOfMemoryError:  # a stand-in has no room either
        raise
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        describe_error(error)
        return build_model(shape, dtype, device)


def package_of(model: nn.Module) -> str:
    return type(model).__module__.partition(".")[0]


def is_from_transformers(model: nn.Module) -> bool:
    """Whether it is no stand-in, and has hidden states and a KV cache."""
    return package_of(model) == "transformers"


# Compute-bound: 2.15 GB per pass across the link, behind a forward several times as long.
LLAMA = replace(next(workloads_of(LLAMA_SIZED, "cuda")), name="llama", make=make_llama)
# As many bytes from layers that compute next to nothing: the link is the bound.
THIN_SHAPE = replace(LLAMA.shape, vocab_size=1024)
THIN = replace(LLAMA, name="thin", shape=THIN_SHAPE, make=make_thin)
# Small kernels, many of them: link, hooks and forward are about as long.
GPT2_SHAPE, GPT2_SITES = GPT2_SIZED.shape, tuple(next(workloads_of(GPT2_SIZED, "cuda")).sites)
GPT2 = replace(LLAMA, name="gpt2", shape=GPT2_SHAPE, sites=GPT2_SITES, make=build_model)

TINY_SHAPE = ModelShape(n_layers=3, width=16, n_heads=2, hidden=32, vocab_size=32)


def tiny(subject: Workload) -> Workload:
    """The same, small enough for a dry run on the CPU."""
    return replace(
        subject,
        shape=TINY_SHAPE,
        sites=subject.sites[: TINY_SHAPE.n_layers],
        batch_size=2,
        n_tokens=80,
        device="cpu",
    )
