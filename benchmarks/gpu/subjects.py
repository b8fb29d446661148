"""The models of the grid: transformers' Llama from a config, or those of benchmarks/models.

All weights are random, all are bfloat16, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.toolbox import GiB, Gpu
from benchmarks.models import ModelShape, build_model
from benchmarks.workloads import LLAMA_7B
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
    sites: list[str]
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
    torch.manual_seed(0)
    reason = ""
    try:
        with _made_on(gpu):
            model = _make(subject)
    except torch.OutOfMemoryError:  # a stand-in has no room either
        raise
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = f" (transformers made none: {type(error).__name__}: {error}".splitlines()[0] + ")"
    if reason:
        model = build_model(subject.shape, DTYPE, gpu.device)
    origin = f"{_package(model)}.{type(model).__name__}{reason}"
    sites = [f"layers.{layer}" for layer in range(subject.shape.n_layers)]
    return Built(subject, model.eval(), sites, origin)


def _make(subject: Subject) -> nn.Module:
    shape = subject.shape
    if subject.name == THIN.name:
        return Thin(shape)
    if subject.name == GPT2.name:
        return build_model(shape, DTYPE, torch.get_default_device())
    from transformers import LlamaConfig, LlamaModel

    make_config: Any = LlamaConfig  # whose types leave attn_implementation out
    config = make_config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=subject.n_tokens,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model: nn.Module = LlamaModel(config)
    return model


@contextmanager
def _made_on(gpu: Gpu) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with gpu.device:
            yield
    finally:
        torch.set_default_dtype(before)


def _package(model: nn.Module) -> str:
    return type(model).__module__.partition(".")[0]


def is_from_transformers(model: nn.Module) -> bool:
    """Whether it is no stand-in, and has hidden states and a KV cache."""
    return _package(model) == "transformers"
