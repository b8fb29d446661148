"""From texts to padded batches with masks, by the model's own tokenizer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor, nn

from fastcap.errors import ArgumentError, ArgumentTypeError, BatchError
from fastcap.huggingface.texts import Chat, Texts, each_item, is_chat
from fastcap.model.sites import WRAPPERS
from fastcap.spec import as_count
from fastcap.warn import warn

POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
POSITION_TENSORS = (*POSITION_TABLES, "pos_encoding")  # of GPT-J, CTRL
"""Names under which models keep one learned vector per position."""

OWN_INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Inputs that do not depend on what the tokenizer says of itself."""

PROBES = (
    'The quick brown fox doesn\'t jump over 13 lazy dogs; SHE SAID: "why?"',
    "  def f(x):\n\treturn x**2  # naïve façade \u2013 東京 🙂\u00a0\u200b",
)
"""Texts that tokenizers take apart differently."""


class Collator:
    """Collates texts or chats into one batch: token ids, mask, and whatever else the model takes.

    Use it as the `collate_fn` of `fastcap.extract_representations` or of a `DataLoader` over a
    list of texts; `batches` makes batches for `fastcap.stream`.

    Args:
        model: The model the batches are for. Only its input names and number of positions are
            read; no reference is kept.
        tokenizer: Its tokenizer. If it has no pad token, its end-of-sequence token fills the
            padding, which the mask covers; the tokenizer itself is not changed.
        max_tokens: Truncate texts to this length, special tokens included. By default, a text that
            exceeds the model's positions is an error. Where positions are computed (rotary,
            relative), it may exceed the length that the model is configured for.
        max_length: Another name for `max_tokens`, as tokenizers have it.
        padding_side: `"right"`, or `"left"`: then `position_ids` count real tokens only, for models
            whose `forward` takes them.
        add_generation_prompt: Whether chats end with the prompt of the assistant's turn.

    Attributes:
        model_inputs: The keys of a batch besides `input_ids`, to pass on as `model_inputs=`.

    Raises:
        ArgumentError: An unknown padding side, `max_tokens` beyond the model's table of positions,
            no token to pad with, or left padding for a model whose positions it would shift.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast
        >>> from fastcap import stream
        >>> from fastcap.huggingface import Collator
        >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "no": 2}, unk_token="<unk>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>")
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=3,
        ...                              bos_token_id=0, eos_token_id=0))
        >>> collator = Collator(model, tokenizer, max_tokens=128)
        >>> batches = collator.batches(["yes", "no", "no"], batch_size=2)
        >>> for records in stream(model, batches, ["h.1.mlp"], model_inputs=collator.model_inputs):
        ...     print(records["h.1.mlp"].shape)
        torch.Size([2, 1, 8])
        torch.Size([1, 1, 8])
    """

    model_inputs: list[str]

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        max_tokens: int | None = None,
        max_length: int | None = None,
        padding_side: str = "right",
        add_generation_prompt: bool = False,
    ) -> None:
        if padding_side not in ("right", "left"):
            raise ArgumentError(f"padding_side must be 'right' or 'left'; got {padding_side!r}.")
        inner = _unwrapped(model)
        self._max_tokens = _one_limit(max_tokens, max_length)
        self._padding_side = padding_side
        self._add_generation_prompt = add_generation_prompt
        self._tokenizer = _able_to_pad(tokenizer)
        self._model_name = type(inner).__name__
        self._n_positions, self._first_position = _positions(inner)
        self._is_bounded = _has_position_table(inner)
        self._check_max_tokens()
        takes = set(inspect.signature(inner.forward).parameters)
        self._ignores_mask = "attention_mask" not in takes
        names = [name for name in tokenizer.model_input_names if name in takes]
        self.model_inputs = ["attention_mask", *(name for name in names if name not in OWN_INPUTS)]
        if padding_side == "left" and "position_ids" in takes:
            self.model_inputs.append("position_ids")
        elif padding_side == "left" and _position_table(inner) is not None:
            raise ArgumentError(
                f"padding_side='left' would shift the positions of {self._model_name}, which "
                "learns one vector per position and takes no position_ids. Use "
                "padding_side='right'."
            )

    def __call__(self, items: Sequence[str | Chat]) -> dict[str, Tensor]:
        """The batch of several texts, or of several chats.

        Returns:
            `input_ids` and `attention_mask`, of shape `(n_items, n_tokens)` and dtype int64, and
            each of `model_inputs`. The longest item has no padding.

        Raises:
            ArgumentError: An item without tokens, or with more than the model has positions, or a
                chat for a tokenizer without a chat template.
        """
        are_chats = is_chat(items[0])
        texts = [self._render(chat) for chat in items] if are_chats else list(items)
        self._check_room(0 if are_chats else self._tokenizer.num_special_tokens_to_add())
        encoded = self._tokenizer(
            texts,
            add_special_tokens=not are_chats,  # a chat template writes them itself
            truncation=self._max_tokens is not None,
            max_length=self._max_tokens,
            padding=True,
            padding_side=self._padding_side,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = encoded["attention_mask"]
        if self._ignores_mask and not mask.all():
            self._ignores_mask = False  # said once
            warn(
                f"The forward of {self._model_name} names no attention_mask: padding reaches it as "
                "tokens, and values of a text depend on the texts beside it. Use batch_size=1, or "
                "batches of texts with the same number of tokens."
            )
        self._check_lengths(texts, mask.sum(dim=1).tolist())
        if "position_ids" in self.model_inputs:
            counted = (mask.cumsum(dim=1) - 1).clamp(min=0)
            encoded["position_ids"] = counted + self._first_position
        return {key: encoded[key] for key in ("input_ids", *self.model_inputs)}

    def batches(
        self, texts: Texts, *, batch_size: int = 32, text_key: str = "text"
    ) -> Iterator[dict[str, Tensor]]:
        """Batches of `batch_size` texts or chats, in order; the last may be smaller.

        Args:
            texts: As for `fastcap.huggingface.extract`; read as they are needed.
            batch_size: Texts per batch.
            text_key: The key of the text or chat in the objects of a `.jsonl` file.
        """
        batch_size = as_count("batch_size", batch_size)
        items = each_item(texts, text_key)
        while batch := list(islice(items, batch_size)):
            yield self(batch)

    def fingerprint(self) -> dict[str, Any]:
        """What batches depend on: the settings, and what the tokenizer makes of a few texts."""
        tokenizer = self._tokenizer
        return {
            "tokenizer": type(tokenizer).__name__.removesuffix("Fast"),
            "n_tokens": len(tokenizer),
            "tokens_of_probes": [tokenizer(text)["input_ids"] for text in PROBES],
            "pad_token_id": tokenizer.pad_token_id,
            "chat_template": getattr(tokenizer, "chat_template", None),
            "max_tokens": self._max_tokens,
            "padding_side": self._padding_side,
            "truncation_side": tokenizer.truncation_side,
            "add_generation_prompt": self._add_generation_prompt,
            "model_inputs": self.model_inputs,
        }

    def _render(self, chat: Any) -> str:
        if not getattr(self._tokenizer, "chat_template", None):
            raise ArgumentError(
                f"This {type(self._tokenizer).__name__} has no chat template, so it cannot write a "
                "chat as text. Use the tokenizer of a chat model, set tokenizer.chat_template, or "
                "pass texts."
            )
        text: str = self._tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=self._add_generation_prompt
        )
        return text

    def _check_max_tokens(self) -> None:
        n_tokens, n_positions = self._max_tokens, self._n_positions
        if n_tokens is None or n_positions is None or n_tokens <= n_positions:
            return
        if self._is_bounded:
            raise ArgumentError(
                f"max_tokens={n_tokens}, but {self._model_name} has {n_positions} positions. Pass "
                f"at most max_tokens={n_positions}."
            )
        self._n_positions = n_tokens  # it was asked for

    def _check_room(self, n_special: int) -> None:
        # Asked to cut below that, tokenizers do not cut at all.
        if self._max_tokens is not None and self._max_tokens <= n_special:
            raise ArgumentError(
                f"max_tokens={self._max_tokens} leaves no room for text: the tokenizer adds "
                f"{n_special} special tokens. Pass at least max_tokens={n_special + 1}."
            )

    def _check_lengths(self, texts: Iterable[Any], lengths: Iterable[int]) -> None:
        for text, n_tokens in zip(texts, lengths, strict=True):
            if n_tokens == 0:
                raise BatchError(
                    f"The text {text!r} has no tokens, so there is nothing to run. Leave it out."
                )
            if self._n_positions is not None and n_tokens > self._n_positions:
                limit, beyond = f"has {self._n_positions} positions", ""
                if not self._is_bounded:
                    limit = f"is configured for {self._n_positions}"
                    beyond = f" Its positions are computed: max_tokens={n_tokens} goes beyond."
                raise BatchError(
                    f"A text has {n_tokens} tokens, and {self._model_name} {limit}: "
                    f"{text[:40]!r}... Cut texts with max_tokens={self._n_positions}, or split "
                    f"them.{beyond}"
                )


def _one_limit(max_tokens: int | None, max_length: int | None) -> int | None:
    """Where to cut texts, which may be given under either name."""
    if max_tokens is not None and max_length is not None:
        raise ArgumentError(
            f"max_tokens={max_tokens} and max_length={max_length}: these are two names of one "
            "option. Pass one of them."
        )
    if max_length is not None:
        return as_count("max_length", max_length)
    return None if max_tokens is None else as_count("max_tokens", max_tokens)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside what torch.compile, a parallel wrapper or PEFT put around it."""
    inner = next((child for name, child in model.named_children() if name in WRAPPERS), None)
    if inner is None and callable(of_adapters := getattr(model, "get_base_model", None)):
        inner = of_adapters()
    return model if inner is None or inner is model else _unwrapped(inner)


def _able_to_pad(tokenizer: Any) -> Any:
    """The tokenizer, or a copy that pads with the end-of-sequence token."""
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token"):
        raise ArgumentTypeError(
            f"tokenizer must be a tokenizer of transformers; got {tokenizer!r}. Load one with "
            "transformers.AutoTokenizer.from_pretrained(folder)."
        )
    if tokenizer.pad_token is not None:
        return tokenizer
    if tokenizer.eos_token is None:
        raise ArgumentError(
            f"This {type(tokenizer).__name__} has neither a pad token nor an end-of-sequence "
            "token, so batches cannot be padded. Set one: tokenizer.pad_token = '<token>', of "
            "tokenizer.get_vocab(). The mask covers it, so any will do."
        )
    padding = copy.deepcopy(tokenizer)
    padding.pad_token = tokenizer.eos_token
    return padding


def _positions(model: nn.Module) -> tuple[int | None, int]:
    """How many positions the model has (`None`: any number), and the id of the first."""
    table = _position_table(model)
    # RoBERTa and its kin keep the rows up to the padding's for padding.
    first = 0 if table is None or table.padding_idx is None else table.padding_idx + 1
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    n_positions = getattr(config, "max_position_embeddings", None)
    return (None if n_positions is None else n_positions - first), first


def _has_position_table(model: nn.Module) -> bool:
    """Whether positions are rows of a table, learned or not, and end with it; else (rotary,
    relative) a model can run beyond the length that it is configured for.
    """
    tensors = chain(model.named_parameters(), model.named_buffers())
    names = {path.rpartition(".")[2] for path, _ in tensors}
    return _position_table(model) is not None or not names.isdisjoint(POSITION_TENSORS)


def _position_table(model: nn.Module) -> nn.Embedding | None:
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in POSITION_TABLES:
            return module
    return None
