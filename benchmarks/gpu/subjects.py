"""The models of the grid: transformers' own from a config, or the stand-ins of benchmarks/models.

All weights are random, all are bfloat16, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.toolbox import GiB, Gpu
from benchmarks.models import ModelShape, build_model

DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and how much of it is run.

    Attributes:
        name: What cells are named after: a key of `MAKERS`.
        shape: Its sizes.
        n_passes: The most passes that a run has.
        needs_bytes: Free memory of the GPU without which it is left out.
        likely_forward_secs: Of one pass; a prediction.
        likely_launch_secs: Of the host, to issue one pass; a prediction.
        batch_size: Samples per pass.
        n_tokens: Tokens of each sample.
    """

    name: str
    shape: ModelShape
    n_passes: int
    needs_bytes: int
    likely_forward_secs: float
    likely_launch_secs: float
    batch_size: int = 8
    n_tokens: int = 1024

    @property
    def n_samples(self) -> int:
        return self.batch_size * self.n_passes

    @property
    def site_bytes(self) -> int:
        """What one site gives in a pass, all positions."""
        return self.batch_size * self.n_tokens * self.shape.width * DTYPE.itemsize


LLAMA = Subject(
    "llama",
    ModelShape(n_layers=32, width=4096, n_heads=32, hidden=11008, vocab_size=32000),
    n_passes=8,
    needs_bytes=24 * GiB,
    likely_forward_secs=0.29,
    likely_launch_secs=0.004,
)
"""Compute-bound: 2.15 GB per pass across the link, behind a forward several times as long."""

GPT2 = Subject(
    "gpt2",
    ModelShape(n_layers=12, width=768, n_heads=12, hidden=3072, vocab_size=50257),
    n_passes=96,
    needs_bytes=4 * GiB,
    likely_forward_secs=0.010,
    likely_launch_secs=0.003,
)
"""Small kernels, many of them: link, hooks and forward are about as long."""

THIN = Subject(
    "thin",
    replace(LLAMA.shape, hidden=1, vocab_size=1024),
    n_passes=6,
    needs_bytes=4 * GiB,
    likely_forward_secs=0.0015,
    likely_launch_secs=0.0005,
)
"""As many bytes as LLAMA from layers that compute next to nothing: the link is the bound."""


def tiny(subject: Subject) -> Subject:
    """The same, small enough for a dry run."""
    shape = ModelShape(n_layers=3, width=16, n_heads=2, hidden=32, vocab_size=32)
    return replace(subject, shape=shape, batch_size=2, n_tokens=80, n_passes=3, needs_bytes=0)


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
        input_ids: Of all samples, on the host.
    """

    subject: Subject
    model: nn.Module
    sites: list[str]
    origin: str
    input_ids: Tensor

    def first(self, n_passes: int) -> Built:
        """The same with fewer passes."""
        subject = replace(self.subject, n_passes=n_passes)
        return replace(self, subject=subject, input_ids=self.input_ids[: subject.n_samples])

    @property
    def batches(self) -> list[dict[str, Tensor]]:
        parts = torch.split(self.input_ids, self.subject.batch_size)
        return [{"input_ids": part} for part in parts]

    @property
    def dataset(self) -> list[dict[str, Tensor]]:
        return [{"input_ids": row} for row in self.input_ids]


def build(subject: Subject, gpu: Gpu) -> Built:
    """Make a subject's model and samples; the same each time."""
    torch.manual_seed(0)
    model, sites, origin = _make(subject, gpu)
    generator = torch.Generator().manual_seed(1)
    size = (subject.n_samples, subject.n_tokens)
    input_ids = torch.randint(subject.shape.vocab_size, size, generator=generator)
    return Built(subject, model.eval(), sites, origin, input_ids)


def _make(subject: Subject, gpu: Gpu) -> tuple[nn.Module, list[str], str]:
    make, prefix = MAKERS[subject.name]
    layers = range(subject.shape.n_layers)
    try:
        with _made_on(gpu):
            model = make(subject)
        reason = ""
    except torch.OutOfMemoryError:  # a stand-in has no room either
        raise
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = f" (transformers made none: {type(error).__name__}: {error}".splitlines()[0] + ")"
    if reason:
        model, prefix = build_model(subject.shape, DTYPE, gpu.device), "layers"
    origin = f"{_package(model)}.{type(model).__name__}{reason}"
    return model, [f"{prefix}.{layer}" for layer in layers], origin


def _package(model: nn.Module) -> str:
    return type(model).__module__.partition(".")[0]


def is_from_transformers(model: nn.Module) -> bool:
    """Whether it is not a stand-in, and has hidden states and a KV cache."""
    return _package(model) == "transformers"


@contextmanager
def _made_on(gpu: Gpu) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPE)
    try:
        with gpu.device:
            yield
    finally:
        torch.set_default_dtype(before)


def _transformers_llama(subject: Subject) -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    shape = subject.shape
    options: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_heads,
        "max_position_embeddings": subject.n_tokens,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    model: nn.Module = LlamaModel(LlamaConfig(**options))
    return model


def _decoder(subject: Subject) -> nn.Module:
    return build_model(subject.shape, DTYPE, torch.get_default_device())


MAKERS: Mapping[str, tuple[Callable[[Subject], nn.Module], str]] = MappingProxyType(
    {
        "llama": (_transformers_llama, "layers"),
        "gpt2": (_decoder, "layers"),
        "thin": (lambda subject: Thin(subject.shape), "layers"),
    }
)
"""What makes a subject's model, and what its blocks are named."""
