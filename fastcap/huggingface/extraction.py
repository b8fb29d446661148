"""`extract`: from a model's name and texts to one tensor per site."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.huggingface.aliases import Blocks, is_alias, sites
from fastcap.huggingface.collator import Collator
from fastcap.huggingface.loading import Name, load, load_model
from fastcap.huggingface.texts import Texts, each_item
from fastcap.representations import extract_representations
from fastcap.spec import Positions, Reduce


def extract(
    model: Name | nn.Module,
    texts: Texts,
    site: str | Iterable[str] = "residual",
    *,
    blocks: Blocks = None,
    tokenizer: Any = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
    max_tokens: int | None = None,
    max_length: int | None = None,
    padding_side: str = "right",
    add_generation_prompt: bool = False,
    text_key: str = "text",
    device: torch.device | str | int | None = None,
    model_dtype: torch.dtype | str = "auto",
    local_files_only: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """Run texts through a Hugging Face model and collect the values of its sites.

    Args:
        model: A model id, a folder, or a model instance.
        texts: A list of texts, or of chats (lists of `{"role": ..., "content": ...}`, written as
            text by the tokenizer's chat template), or the path of a `.txt` or `.jsonl` file
            (see `read_texts`), or a list of such paths.
        site: An alias (`"residual"`, `"block"`, `"attention"`, `"mlp"`; see `sites`), a module
            name, or several of either.
        blocks: Which blocks an alias stands for: an int, several, or a slice; `None` for all.
        tokenizer: Required with a model instance; with a name, replaces the model's own.
        positions: As in `extract_representations`. `"last"` is the last token of each text,
            whatever the padding; ints index the padded batch.
        reduce: As in `extract_representations`. `"mean"` is over the tokens of each text.
        dtype: The dtype to deliver; the model's is `model_dtype`.
        batch_size: Texts per pass. Every batch is padded to its longest text.
        max_tokens: Truncate texts to this length. By default, texts that exceed the model's
            positions are an error.
        max_length: Another name for `max_tokens`, as tokenizers have it.
        padding_side: `"right"`, or `"left"` with `position_ids` for models that take them.
        add_generation_prompt: Whether chats end with the prompt of the assistant's turn.
        text_key: The key of the text or chat in the objects of a `.jsonl` file.
        device: Where the model runs; by default the CPU for a named model. A model instance stays
            where it is, and `device` must match.
        model_dtype: The dtype to load a named model in; `"auto"` is the dtype it was saved in.
        local_files_only: Load a named model without contacting the network.
        options: Any other option of `extract_representations`, such as `max_samples` or
            `progress`.

    Returns:
        One tensor of shape `(n_texts, ...)` per module, keyed by module name, in the order of
        `site` and `blocks`: on the CPU, contiguous. Rows are in the order of the texts.

    Raises:
        LoadError, MissingExtraError: The model cannot be loaded.
        SiteNotFoundError: The model has no such alias or module.
        ArgumentError, ArgumentTypeError, BatchError: Texts or options are not valid.
        ResultError: Texts of different lengths without `positions` or `reduce`: their batches do
            not fit into one tensor.
        Exception: Whatever else `extract_representations` raises.

    Examples:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast
        >>> from fastcap.huggingface import extract
        >>> words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "no": 2}, unk_token="<unk>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>")
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=3,
        ...                              bos_token_id=0, eos_token_id=0))
        >>> acts = extract(model, ["yes", "no"], "residual", blocks=-1, tokenizer=tokenizer,
        ...                positions="last")  # or a name: extract("openai-community/gpt2", ...)
        >>> acts["h.1"].shape
        torch.Size([2, 8])
    """
    items = list(each_item(texts, text_key))
    if not items:
        raise ArgumentError("texts is empty: pass at least one text.")
    if isinstance(model, nn.Module):
        _check_built(model, tokenizer, model_dtype)
    elif isinstance(model, str | os.PathLike):
        place = "cpu" if device is None else device
        model, tokenizer = _load(model, tokenizer, place, model_dtype, local_files_only)
    else:
        raise ArgumentTypeError(
            f"model must be a model id, a folder or a torch.nn.Module; got {model!r}."
        )
    if "forward" not in options:
        _check_needs_texts_only(model)
    collator = Collator(
        model,
        tokenizer,
        max_tokens=max_tokens,
        max_length=max_length,
        padding_side=padding_side,
        add_generation_prompt=add_generation_prompt,
    )
    return extract_representations(
        model,
        items,
        _names(model, site, blocks),
        device=_device_of(model) if device is None else device,
        batch_size=batch_size,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        model_inputs=collator.model_inputs,
        collate_fn=collator,
        **options,
    )


def _load(
    name: Name,
    tokenizer: Any,
    device: torch.device | str | int,
    dtype: torch.dtype | str,
    local_files_only: bool,
) -> tuple[nn.Module, Any]:
    if tokenizer is None:
        return load(name, device=device, dtype=dtype, local_files_only=local_files_only)
    model = load_model(name, device, dtype, local_files_only=local_files_only)
    return model, tokenizer


def _check_built(model: nn.Module, tokenizer: Any, model_dtype: torch.dtype | str) -> None:
    if tokenizer is None:
        raise ArgumentError(
            f"A built model ({type(model).__name__}) needs its tokenizer: pass tokenizer=, such as "
            "transformers.AutoTokenizer.from_pretrained(folder)."
        )
    if model_dtype != "auto":
        raise ArgumentError(
            f"model_dtype={model_dtype} is for loading, and this model is built already. Convert "
            "it yourself (model.to(...)), or choose the dtype of the result with dtype=."
        )


def _check_needs_texts_only(model: nn.Module) -> None:
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        raise ArgumentError(
            f"{type(model).__name__} is an encoder-decoder, whose decoder needs inputs of its own. "
            "Pass its encoder, extract(model.get_encoder(), texts, site, tokenizer=tokenizer), or "
            "say how to call the whole with forward=lambda model, batch: model(**batch, "
            "decoder_input_ids=...)."
        )


def _names(model: nn.Module, site: str | Iterable[str], blocks: Blocks) -> list[str]:
    several = isinstance(site, Iterable) and not isinstance(site, str | nn.Module)
    wanted: list[Any] = list(site) if several else [site]
    if blocks is not None and not any(map(is_alias, wanted)):
        raise ArgumentError(
            f"blocks={blocks!r} says which blocks an alias stands for, and {wanted} has no alias. "
            "Write the number into the module's name, or use 'residual', 'attention' or 'mlp'."
        )
    names: list[str] = []
    for name in wanted:
        names += sites(model, name, blocks=blocks) if is_alias(name) else [name]
    return names


def _device_of(model: nn.Module) -> torch.device:
    found = next(model.parameters(), None)
    return torch.device("cpu") if found is None else found.device
