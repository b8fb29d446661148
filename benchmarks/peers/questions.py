"""What every library is asked to capture, and the model and token ids that it is asked of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT-2 with random weights.

    The vocabulary is small, so that logits, which nobody asked for, do not hide what capture takes.
    """

    n_layers: int = 12
    width: int = 768
    n_heads: int = 12
    vocab_size: int = 1024
    n_positions: int = 256


@dataclass(frozen=True, slots=True)
class Question:
    """Which activations are wanted, of how many samples.

    Attributes:
        name: What tables and files call it.
        what: The same in words.
        n_samples: Samples in a timed run.
        n_memory_samples: Samples in a run whose memory is measured; `None` where none is.
        n_tokens: Tokens of each sample.
        batch_size: Samples per pass.
        layers: Blocks whose output, the residual stream after them, is captured.
        position: The one token that is wanted of each sample; `None` for all.
        stop: Whether passes end after the last of these layers, where a library can do that.
        to_disk: Whether the result is a file, and not tensors.
    """

    name: str
    what: str
    n_samples: int
    n_memory_samples: int | None
    n_tokens: int
    batch_size: int
    layers: tuple[int, ...]
    position: int | None = None
    stop: bool = False
    to_disk: bool = False

    @property
    def sites(self) -> tuple[str, ...]:
        """Module names, which are also the keys of every result."""
        return tuple(f"transformer.h.{layer}" for layer in self.layers)

    def result_bytes(self, shape: Shape, n_samples: int) -> int:
        """Bytes of all sites' float32 results together."""
        n_tokens = self.n_tokens if self.position is None else 1
        return n_samples * n_tokens * shape.width * len(self.layers) * 4


GPT2 = Shape()
QUESTIONS = (
    # Small passes: many turns, so that neighbours on a shared machine slow all ways alike.
    Question("residual", "all layers, all tokens", 16, 48, 64, 2, tuple(range(12))),
    Question("last", "all layers, last token", 16, 48, 64, 2, tuple(range(12)), position=-1),
    Question("stop", "layer 5 of 12, passes end there", 16, None, 64, 2, (5,), stop=True),
    # Many samples, so that what a pass needs does not hide what writing needs.
    Question("disk", "layer 11, all tokens, to disk", 16, 128, 64, 2, (11,), to_disk=True),
)

TINY_SHAPE = Shape(n_layers=2, width=16, n_heads=2, vocab_size=32, n_positions=16)


def _tiny(question: Question) -> Question:
    """The same of the first and the second half of the layers, as tests ask it."""
    return replace(
        question,
        n_samples=6,
        n_memory_samples=question.n_memory_samples and 6,
        n_tokens=8,
        layers=tuple(sorted({2 * layer // GPT2.n_layers for layer in question.layers})),
    )


SIZES = {"gpt2": (GPT2, QUESTIONS), "tiny": (TINY_SHAPE, tuple(map(_tiny, QUESTIONS)))}


def draw_token_ids(question: Question, shape: Shape, n_samples: int) -> Tensor:
    """`(n_samples, n_tokens)`; the same ids in every process."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(shape.vocab_size, (n_samples, question.n_tokens), generator=generator)


def batches(token_ids: Tensor, question: Question) -> Iterator[tuple[slice, Tensor]]:
    """The rows of the result, and the ids, of one pass after another."""
    for start in range(0, len(token_ids), question.batch_size):
        rows = slice(start, min(start + question.batch_size, len(token_ids)))
        yield rows, token_ids[rows]


def write_model(folder: Path, shape: Shape) -> None:
    """Write a random-weight model and a word-level tokenizer, as `from_pretrained` reads them."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=shape.n_layers,
        n_embd=shape.width,
        n_head=shape.n_heads,
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = {f"t{i}": i for i in range(shape.vocab_size)}
    make_tokenizer: Any = PreTrainedTokenizerFast  # it has no types
    tokenizer = make_tokenizer(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")),
        pad_token="t0",
        bos_token="t0",
        eos_token="t0",
        unk_token="t0",
    )
    tokenizer.save_pretrained(folder)


def read_model(folder: Path, attention: str = "sdpa") -> nn.Module:
    """The model in float32, in eval mode, on the CPU."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()
