"""The way that transformers' own models have built in: `output_hidden_states=True`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import fastcap.bench
from fastcap.bench.case import Values
from fastcap.bench.ways import Way

N_LAYERS = 4
SITES = tuple(f"layers.{i}" for i in range(N_LAYERS - 1))
"""Not the last: what transformers gives for it has been through the final norm."""


def build_llama(device: str = "cpu") -> nn.Module:
    """A transformers decoder with random weights."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        use_cache=False,
    )
    model: nn.Module = LlamaModel(config)
    return model.to(device).eval()


def llama_case(device: str = "cpu", n_passes: int = 3) -> fastcap.bench.Case:
    """Every block's output but the last's, for some passes of 4 samples of 32 tokens."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"input_ids": torch.randint(128, (4, 32), generator=generator)} for _ in range(n_passes)
    ]
    return fastcap.bench.make_case(build_llama(device), batches, SITES)


def output_hidden_states(device: str = "cpu") -> Way:
    """Ask the model for every layer's input, and keep what was asked for.

    On a model of its own with the same weights: the first call that asks leaves transformers' hooks
    on the model for good, and they would slow down every other way.
    """
    model = build_llama(device)

    @torch.no_grad()
    def way(case: fastcap.bench.Case) -> Values:
        parts: dict[str, list[Tensor]] = {site: [] for site in case.sites}
        for batch in case.batches:
            output: Any = model(batch["input_ids"].to(case.device), output_hidden_states=True)
            for site, values in parts.items():
                number = int(site.rpartition(".")[2])
                values.append(output.hidden_states[number + 1].cpu())
        return {site: torch.cat(values) for site, values in parts.items()}

    return way
