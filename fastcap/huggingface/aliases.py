"""Site aliases: what the blocks of many architectures have in common, under one name."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import nn

from fastcap.errors import ArgumentError, ArgumentTypeError, SiteNotFoundError
from fastcap.huggingface.verdicts import Place, refusal, say_unverified
from fastcap.model.aliased import remember_alias
from fastcap.model.sites import WRAPPERS, can_be_called

Blocks: TypeAlias = int | slice | Iterable[int] | None
"""What callers may pass as `blocks`."""

STACKS = ("layers", "layer", "h", "block", "blocks")
"""Names of the module lists that hold a model's blocks."""

INSIDE_A_BLOCK = {
    "attention": (
        "self_attn",  # Llama, Mistral, Qwen, Gemma, Phi, OPT, BART, Whisper, CLIP
        "attention.output.dense",  # BERT, MiniLM, RoBERTa, ELECTRA, DeBERTa
        "attn",  # GPT-2, GPT-J, GPT-Neo, MPT, ModernBERT
        "attention",  # GPT-NeoX, DistilBERT, ViT, Wav2Vec2
        "self_attention",  # Falcon
        "layer.*.SelfAttention",  # T5
    ),
    "mlp": (
        "mlp",  # Llama, Mistral, Qwen, Gemma, Phi, GPT-2, GPT-NeoX, ViT, CLIP
        "block_sparse_moe",  # Mixtral of older releases
        "feed_forward",  # Wav2Vec2
        "ffn",  # DistilBERT
        "layer.*.DenseReluDense",  # T5
        "output.dense",  # BERT, MiniLM, RoBERTa, ELECTRA, DeBERTa
        "fc2",  # BART, Whisper
    ),
}
"""Where a block keeps the module whose output is added to the residual stream; first match wins."""

EXCEPTIONS = {
    # These modules add the residual stream themselves; the layer named here comes before that.
    ("BloomBlock", "attention"): "self_attention.dense",
    ("BloomBlock", "mlp"): "mlp.dense_4h_to_h",
    ("MptBlock", "mlp"): "ffn.down_proj",
    # These return the sum after the block's norm; the layer named here comes before both.
    ("FunnelLayer", "attention"): "attention.post_proj",
    ("FunnelLayer", "mlp"): "ffn.linear_2",
    ("MPNetLayer", "attention"): "attention.attn",
}
MIXERS = ("mixer", "linear_attn", "mamba")
"""What a block may have in place of attention; such blocks have the aliases of whole blocks."""

WHOLE_BLOCK = ("block", "residual")
ALIASES = (*WHOLE_BLOCK, *INSIDE_A_BLOCK)


def sites(
    model: nn.Module, alias: str, *, blocks: Blocks = None, within: str | None = None
) -> list[str]:
    """The module names an alias stands for in a model.

    `attention` and `mlp` name the module whose output the block adds to the residual stream, before
    that addition and before any norm or dropout that follows it. `block` and `residual` both name
    the block, whose output is the residual stream after it. The last block's output has not been
    through the model's final norm; in post-norm models such as BERT, the block's own norm is
    included.

    Modules are found by their names. For blocks of transformers whose modules were compared by
    value, that is all; a module that is known to be the wrong one is refused, and one that was not
    compared is reported in a warning, once for each class of block.

    Args:
        model: A model, wrapped or not.
        alias: `"block"`, `"residual"`, `"attention"` or `"mlp"`; a part may follow, as in
            `"mlp:output[0]"`.
        blocks: Which of them: an int, several, or a slice; negative ones count from the end. `None`
            for every block that has such a module.
        within: Only blocks below this module, such as `"encoder"`, wherever that is in the model.
            Without it, `blocks` counts in each stack of blocks separately.

    Returns:
        Names in the order of `blocks`, stack by stack, without segments added by wrappers.

    Raises:
        SiteNotFoundError: No blocks, no such module in them, or one that is known to be another
            value; the error says what was looked for, or what is wrong with it.
        ArgumentError, ArgumentTypeError: An unknown alias, or a block that does not exist.

    Examples:
        >>> from transformers import GPT2Config, GPT2Model
        >>> model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10,
        ...                              bos_token_id=0, eos_token_id=0))
        >>> sites(model, "mlp", blocks=[0, -1])
        ['h.0.mlp', 'h.1.mlp']
        >>> sites(model, "residual")
        ['h.0', 'h.1']
    """
    if not is_alias(alias):
        raise ArgumentError(
            f"{alias!r} is not a site alias. The aliases are {_quoted(ALIASES)}; anything else is "
            "the name of a module, and needs no alias."
        )
    kind, colon, part = alias.partition(":")
    places, modules = find_places(model, kind, blocks, within)
    for place in places:
        reason = _never_called(modules[place.path]) or refusal(place)
        if reason:
            raise SiteNotFoundError(_refused(place, reason, modules))
    say_unverified(places)
    for place in places:
        remember_alias(modules[place.path], kind)
    return [place.path + colon + part for place in places]


def find_places(
    model: nn.Module, kind: str, blocks: Blocks = None, within: str | None = None
) -> tuple[list[Place], dict[str, nn.Module]]:
    """Where an alias leads by name, whatever is known of it, and the model's modules by path."""
    modules = {_without_wrappers(path): module for path, module in model.named_modules()}
    stacks = [path for path in _find_stacks(modules) if _is_below(path, within)]
    if not stacks:
        raise SiteNotFoundError(_no_blocks(model, modules, kind, within))
    places = []
    for stack in stacks:
        n_blocks = sum(1 for _ in modules[stack].children())
        for index in _as_indices(blocks, n_blocks, stack):
            path = f"{stack}.{index}"
            inside = "" if kind in WHOLE_BLOCK else _inside(kind, path, modules)
            if inside is not None:
                where = f"{path}.{inside}".rstrip(".")
                places.append(Place(kind, where, modules[path], inside))
            elif blocks is not None:
                raise SiteNotFoundError(_not_in_block(kind, path, modules))
    if not places:
        raise SiteNotFoundError(_not_in_block(kind, f"{stacks[0]}.0", modules))
    return places, modules


def is_alias(name: str) -> bool:
    """Whether a site name is an alias, with or without a part after a colon."""
    return isinstance(name, str) and name.partition(":")[0] in ALIASES


def _without_wrappers(path: str) -> str:
    return ".".join(segment for segment in path.split(".") if segment not in WRAPPERS)


def _is_below(path: str, within: str | None) -> bool:
    """Whether a path leads through a module that is named by its whole path or by its end."""
    return within is None or f".{_without_wrappers(within)}." in f".{path}"


def _find_stacks(modules: dict[str, nn.Module]) -> list[str]:
    """The outermost module lists of blocks, in model order."""
    stacks: list[str] = []
    for path, module in modules.items():
        if not _is_named_as_stack(path, modules) or any(
            path.startswith(f"{stack}.") for stack in stacks
        ):
            continue
        blocks = [f"{path}.{index}" for index, _ in enumerate(module.children())]
        if any(_is_block(block, modules) for block in blocks):
            stacks.append(path)
    return stacks


def _is_named_as_stack(path: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a module list has a name for it, or is an item of a list that has (as in Funnel)."""
    outer, _, name = path.rpartition(".")
    if not isinstance(modules[path], nn.ModuleList):
        return False
    return name in STACKS or (name.isdigit() and _is_named_as_stack(outer, modules))


def _is_block(path: str, modules: dict[str, nn.Module]) -> bool:
    return _inside("attention", path, modules) is not None or any(
        f"{path}.{mixer}" in modules for mixer in MIXERS
    )


def _inside(kind: str, block: str, modules: dict[str, nn.Module]) -> str | None:
    """Where in a block the module of this kind is, as a path relative to the block."""
    class_name = type(modules[block]).__name__
    if kind == "mlp" and class_name == "OPTDecoderLayer":
        raise SiteNotFoundError(
            "OPT has no module whose output is that of the MLP by sample: its fc1 and fc2 run on "
            "rows of all samples at once, (batch * sequence, width). Ask for 'residual' or "
            f"'attention', or capture {block + '.fc2'!r} with fastcap.stream, one text per batch."
        )
    exception = EXCEPTIONS.get((class_name, kind))
    if exception is not None:
        return exception
    below = [path.removeprefix(f"{block}.") for path in modules if path.startswith(f"{block}.")]
    for pattern in INSIDE_A_BLOCK[kind]:
        found = fnmatch.filter(below, pattern)
        if found:
            return found[0]
    return None


def _as_indices(blocks: Blocks, n_blocks: int, stack: str) -> list[int]:
    if blocks is None:
        return list(range(n_blocks))
    if isinstance(blocks, slice):
        blocks = range(n_blocks)[blocks]
    wanted: list[Any] = list(blocks) if isinstance(blocks, Iterable) else [blocks]
    if any(isinstance(index, bool) or not hasattr(index, "__index__") for index in wanted):
        raise ArgumentTypeError(
            f"blocks must be an int, several ints, a slice or None; got {blocks!r}."
        )
    indices = [operator.index(index) for index in wanted]
    if not indices:
        raise ArgumentError(
            f"blocks={blocks!r} selects none of the {n_blocks} blocks of {stack!r}. Name at least "
            "one, or leave it out for all."
        )
    for index in indices:
        if not -n_blocks <= index < n_blocks:
            raise ArgumentError(
                f"Block {index} does not exist: {stack!r} has {n_blocks} blocks, 0 to "
                f"{n_blocks - 1} (or {-n_blocks} to -1 from the end)."
            )
    return list(dict.fromkeys(index % n_blocks for index in indices))


def _no_blocks(
    model: nn.Module, modules: dict[str, nn.Module], alias: str, within: str | None
) -> str:
    inside = "" if within is None else f" below {within!r}"
    lists = ", ".join(f"*.{name}" for name in STACKS)
    found = [path for path in modules if path]
    more = "..." if len(found) > 20 else ""
    return (
        f"No blocks found in {type(model).__name__}{inside}, so {alias!r} names nothing. Looked "
        f"for module lists {lists} whose blocks hold one of "
        f"{_quoted((*INSIDE_A_BLOCK['attention'], *MIXERS))}. Name modules instead; this model "
        f"has: {found[:20]}{more} All names: for name, _ in model.named_modules(): print(name)"
    )


def _not_in_block(kind: str, block: str, modules: dict[str, nn.Module]) -> str:
    children = [name for name, _ in modules[block].named_children()]
    return (
        f"No {kind} found in block {block!r} ({type(modules[block]).__name__}). Looked for "
        f"{_quoted(INSIDE_A_BLOCK[kind])}; the block has {children}. Name the module instead, such "
        f"as {f'{block}.{children[0]}'!r}."
    )


def _never_called(module: nn.Module) -> str:
    return "" if can_be_called(module) else f"a {type(module).__name__} is never called itself"


def _refused(place: Place, reason: str, modules: dict[str, nn.Module]) -> str:
    block = place.path.removesuffix(place.inside).rstrip(".")
    inside = [path.removeprefix(f"{block}.") for path in modules if path.startswith(f"{block}.")]
    more = "..." if len(inside) > 20 else ""
    return (
        f"{place.kind!r} has no module of its own in {block!r} ({type(place.block).__name__}): the "
        f"name leads to {place.path!r}, and {reason}. Name the module that you mean; the block has "
        f"{inside[:20]}{more}"
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
