"""A Llama-like decoder with random weights: what every benchmark captures from.

Plain PyTorch and no checkpoint. Weights come from a seed and are drawn on the device they stay on,
so 32 layers of width 4096 take about a second on a GPU and no host memory. Module names are those
of the documented calls: layers.0.attention, layers.0.mlp, norm, output_head, token_embedding.
`x` is the residual stream, of shape `(n_samples, n_tokens, width)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines, each of shape `(n_tokens, head_width)`."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder.

    Attributes:
        n_layers: Blocks.
        width: Elements of the residual stream.
        n_heads: Attention heads; `width / n_heads` elements each.
        hidden: Elements between the two halves of an MLP.
        vocab_size: Token ids, and logits.
    """

    n_layers: int
    width: int
    n_heads: int
    hidden: int
    vocab_size: int


Linear = partial(nn.Linear, bias=False)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, through `scaled_dot_product_attention`."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.query = Linear(shape.width, shape.width)
        self.key = Linear(shape.width, shape.width)
        self.value = Linear(shape.width, shape.width)
        self.output = Linear(shape.width, shape.width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        query = rotate(self._heads(self.query(x)), rotation)
        key = rotate(self._heads(self.key(x)), rotation)
        value = self._heads(self.value(x))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        output: Tensor = self.output(mixed.transpose(1, 2).reshape(x.shape))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        n_samples, n_tokens, width = x.shape
        shape = (n_samples, n_tokens, self.n_heads, width // self.n_heads)
        return x.view(shape).transpose(1, 2)


class SwiGLU(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate = Linear(shape.width, shape.hidden)
        self.up = Linear(shape.width, shape.hidden)
        self.down = Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


class Block(nn.Module):
    """Attention, then MLP, each behind its norm and added to the residual stream."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.width)
        self.mlp = SwiGLU(shape)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        output: Tensor = x + self.mlp(self.mlp_norm(x))
        return output


class Decoder(nn.Module):
    """From token ids `(n_samples, n_tokens)` to logits `(n_samples, n_tokens, vocab_size)`."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_width = shape.width // shape.n_heads
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleDict({str(i): Block(shape) for i in range(shape.n_layers)})
        self.norm = nn.RMSNorm(shape.width)
        self.output_head = Linear(shape.width, shape.vocab_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.token_embedding(input_ids)
        rotation = make_rotation(input_ids.shape[1], self.head_width, x)
        for block in self.layers.values():
            x = block(x, rotation)
        logits: Tensor = self.output_head(self.norm(x))
        return logits


def make_rotation(n_tokens: int, head_width: int, like: Tensor) -> Rotation:
    """The rotary table for positions from 0, in the dtype and on the device of `like`."""
    channel = torch.arange(0, head_width, 2, dtype=torch.float32, device=like.device)
    position = torch.arange(n_tokens, dtype=torch.float32, device=like.device)
    angles = torch.outer(position, 10_000.0 ** (-channel / head_width)).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of channels of `(n_samples, n_heads, n_tokens, head_width)` by its angle."""
    cosines, sines = rotation
    first, second = heads.chunk(2, dim=-1)
    return heads * cosines + torch.cat((-second, first), dim=-1) * sines


def build_model(
    shape: ModelShape, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> Decoder:
    """A decoder in eval mode, the same for the same arguments on one kind of device."""
    with torch.device("meta"):  # no initial values: they are drawn below, once
        model = Decoder(shape).to(dtype)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
    return model.eval()


def _draw(name: str, parameter: nn.Parameter, generator: torch.Generator) -> None:
    if parameter.ndim == 1:
        parameter.fill_(1.0)
    elif name.startswith("token_embedding"):
        parameter.normal_(generator=generator)
    else:  # so that activations neither grow nor vanish with the width
        parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)


def build_llama(shape: ModelShape, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
    """The decoder of transformers that has these sizes, in eval mode.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import LlamaConfig, LlamaModel

    make_config: Any = LlamaConfig  # whose types leave attn_implementation out
    config = make_config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        use_cache=False,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = LlamaModel(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()
