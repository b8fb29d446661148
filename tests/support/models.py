"""Small models that every test may share, each with one property that matters to capturing.

Shapes: B samples, S positions, D width. Activations are `(B, S, D)` unless said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 32
WIDTH = 16


class SelfAttention(nn.Module):
    """Causal attention over all positions, with two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, acts: Tensor, mask: Tensor | None = None) -> Tensor:
        n_batch, n_tokens, width = acts.shape
        qkv = self.qkv(acts).view(n_batch, n_tokens, 3, 2, width // 2)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        allowed = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=acts.device).tril()
        if mask is not None:
            allowed = (
                allowed & mask.bool()[:, None, None, :]
                | torch.eye(n_tokens, device=acts.device).bool()
            )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        output: Tensor = self.out(mixed.transpose(1, 2).reshape(n_batch, n_tokens, width))
        return output


class FeedForward(nn.Module):
    """The gated feed-forward network of a Llama block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 2 * width, bias=False)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, acts: Tensor) -> Tensor:
        output: Tensor = self.down(functional.silu(self.gate(acts)) * self.up(acts))
        return output


class Block(nn.Module):
    """A pre-norm block, with the submodule names that language models commonly have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = SelfAttention(width)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp = FeedForward(width)

    def forward(self, acts: Tensor, mask: Tensor | None = None) -> Tensor:
        acts = acts + self.attention(self.attention_norm(acts), mask)
        output: Tensor = acts + self.mlp(self.mlp_norm(acts))
        return output


class TupleBlock(Block):
    """A block that returns `(acts, mean)`."""

    def forward(self, acts: Tensor, mask: Tensor | None = None) -> Any:
        acts = super().forward(acts, mask)
        return acts, acts.mean(dim=-1)


class LanguageModel(nn.Module):
    """A Llama-like language model: `token_embedding`, `layers.0` ..., `norm`, `output_head`.

    Args:
        n_layers: Blocks.
        layers_as: The container of the blocks; either gives the names `layers.0`, `layers.1`.
        block: The class of the blocks.
        seed: What the weights are drawn from.
    """

    def __init__(
        self,
        n_layers: int = 2,
        layers_as: type[nn.ModuleDict | nn.ModuleList] = nn.ModuleDict,
        block: type[Block] = Block,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks = [block(WIDTH) for _ in range(n_layers)]
            self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.layers: Any = (
                nn.ModuleDict({str(index): made for index, made in enumerate(blocks)})
                if layers_as is nn.ModuleDict
                else nn.ModuleList(blocks)
            )
            self.norm = nn.RMSNorm(WIDTH)
            self.output_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        acts = self.token_embedding(input_ids)
        for block in dict(self.layers.named_children()).values():
            returned = block(acts, attention_mask)
            acts = returned[0] if isinstance(returned, tuple) else returned
        logits: Tensor = self.output_head(self.norm(acts))
        return logits


class HiddenPair(NamedTuple):
    """A named tuple whose first element is a tensor."""

    hidden: Tensor
    label: str


@dataclass
class HiddenOutput:
    """A dataclass with a tensor in it."""

    last_hidden_state: Tensor
    n_layers: int = 1


class Returning(nn.Module):
    """Returns whatever `make` makes of its input."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, acts: Tensor) -> Any:
        return self.make(acts)


class WithOddModule(nn.Module):
    """Embeds ids, calls `odd` for its own sake and goes on with `head`.

    Args:
        make: What `odd` returns, given the embedded ids `(B, S, D)`.
    """

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.odd = Returning(make)
            self.head = nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        acts = self.embedding(input_ids)
        self.odd(acts)
        output: Tensor = self.head(acts)
        return output


class SharedWeights(nn.Module):
    """One linear layer under two names, called twice in each pass."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.first = self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(self.embedding(input_ids)).relu())
        return output


class CountsTrainCalls(LanguageModel):
    """Overrides `train`, as adapters do that merge their weights for evaluation."""

    def __init__(self) -> None:
        self.train_calls: list[bool] = []
        super().__init__()

    def train(self, mode: bool = True) -> Self:
        self.train_calls.append(mode)
        return super().train(mode)

    @property
    def is_merged(self) -> bool:
        """Whether the last call asked for evaluation."""
        return bool(self.train_calls) and not self.train_calls[-1]


class PositionTable(nn.Module):
    """GPT-2's `wpe`: its output is `(1, S, D)` whatever the batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.wte = nn.Embedding(VOCABULARY, WIDTH)
            self.wpe = nn.Embedding(64, WIDTH)
            self.head = nn.Linear(WIDTH, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        output: Tensor = self.head(self.wte(input_ids) + self.wpe(positions))
        return output


class FrozenPart(nn.Module):
    """`backbone` was put into eval mode by its owner and has to stay there; `head` trains."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5))
            self.head = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout(0.5))
        self.backbone.eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        output: Tensor = self.head(self.backbone(self.embedding(input_ids)))
        return output


class WritesInPlace(nn.Module):
    """Overwrites what `linear` returned, twice, before the pass is over."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.embedding = nn.Embedding(VOCABULARY, WIDTH)
            self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        acts: Tensor = self.linear(self.embedding(input_ids))
        acts.relu_()
        acts.mul_(2.0).add_(1.0)
        return acts


class FailsAt(nn.Module):
    """Raises `error` in its n-th pass, between the sites `before` and `after`.

    Args:
        error: The object that is raised.
        at_pass: Which pass raises it, from 0; later ones succeed.
    """

    def __init__(self, error: BaseException, at_pass: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            self.before = nn.Embedding(VOCABULARY, WIDTH)
            self.after = nn.Linear(WIDTH, 4)
        self.error = error
        self.at_pass = at_pass
        self.n_passes = 0

    def forward(self, input_ids: Tensor) -> Tensor:
        acts = self.before(input_ids)
        self.n_passes += 1
        if self.n_passes == self.at_pass + 1:
            raise self.error
        output: Tensor = self.after(acts)
        return output


class Patches(nn.Module):
    """A vision-like model that is called with `pixel_values` of shape `(B, 3, 8, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.patches = nn.Conv2d(3, WIDTH, kernel_size=4, stride=4)
            self.head = nn.Linear(WIDTH, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        output: Tensor = self.head(self.patches(pixel_values).flatten(2).mean(dim=2))
        return output


N_ROOT_HOOKS = 2  # by which a store knows where passes begin and end


def hooks_on(model: nn.Module) -> int:
    """Hooks of any kind on a model and its modules."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def training_flags(model: nn.Module) -> dict[str, bool]:
    """Every module's `training` flag by name."""
    return {name: module.training for name, module in model.named_modules()}
