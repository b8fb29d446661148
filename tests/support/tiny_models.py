"""Any model of transformers, made tiny from its configuration, and something to call it with."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

N_SAMPLES, N_TOKENS, N_LAYERS, N_WORDS = 2, 7, 2, 99
MOST_PARAMETERS, MOST_TRIES = 60_000_000, 12

LAYERS = re.compile(r"(num_|n_)?(hidden_|encoder_|decoder_|block_)?(layers?|blocks)|depth")
COUNTS = {
    r"\w*vocab_size\w*": N_WORDS,
    LAYERS.pattern: N_LAYERS,
    "image_size": 64,
    r"\w*intermediate_size|\w*ffn_dim|d_ff|n_inner|d_inner|ffn_\w*size|mlp_dim": 64,
    r"(n_routed|num_local|num|moe_num)_experts": 4,
    r"num_experts_per_tok|moe_top_k|moe_k|top_k_experts|n_group|topk_group": 2,
}
WIDTHS = {
    r"hidden_size|d_model|n_embd|\w*embed_dim|embedding_size|dim|\w*hidden_dim|width": 32,
    r"\w*attention_heads|num_heads|n_heads?|encoder_heads|decoder_heads": 4,
    r"num_key_value_heads|n_kv_heads|num_kv_heads": 2,
    r"head_dim|d_kv|d_head|rotary_dim|qk_rope_head_dim": 8,
}
LADDER = ({**COUNTS, **WIDTHS}, COUNTS, {LAYERS.pattern: N_LAYERS})
"""What is made smaller; a model that is not happy with the first of them may be with the next."""


class NotBuiltError(Exception):
    """The reason why a class has no tiny model here, in a few words."""


def build(config_class: Any, model_class: Any) -> tuple[nn.Module, dict[str, Tensor] | None, str]:
    """A tiny model, its inputs, and why there are none: then it is on the meta device.

    Raises:
        NotBuiltError: Not even that.
    """
    reason, on_meta = "", None
    for sizes in LADDER:
        try:
            config = shrunk(config_class(), sizes)
            with torch.device("meta"):
                on_meta = model_class(config)
            if sum(parameter.numel() for parameter in on_meta.parameters()) > MOST_PARAMETERS:
                raise NotBuiltError("too large when made small")
            model = with_random_weights(model_class, config)
            return model, inputs_of(model), ""
        except Exception as error:  # noqa: BLE001 - of any model, for any reason
            reason = reason or in_short(error)
    if on_meta is None:
        raise NotBuiltError(reason)
    return on_meta, None, reason


def shrunk(config: Any, sizes: dict[str, int]) -> Any:
    """The configuration made again with smaller numbers, and those inside it likewise."""
    return type(config)(**smaller(config, sizes))


def smaller(config: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """What to make a configuration with, where it is not as by default."""
    found = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    arguments = inspect.signature(type(config)).parameters
    derived = {name for name, argument in arguments.items() if argument.default is None}
    n_layers = {n for name, n in found.items() if LAYERS.fullmatch(name) and isinstance(n, int)}
    options: dict[str, Any] = {}
    for name, value in found.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            options[name] = {"model_type": value.model_type, **smaller(value, sizes)}
        elif isinstance(value, list) and len(value) in n_layers and len(value) > N_LAYERS:
            other = next((i for i, item in enumerate(value) if item != value[0]), 1)
            options[name] = [value[0], value[other]]
        elif name == "depths":
            options[name] = [min(depth, N_LAYERS) for depth in value]
        elif isinstance(value, dict) and "mrope_section" in value and "head_dim" in str(sizes):
            options[name] = {**value, "mrope_section": [2, 1, 1]}
        elif isinstance(value, int) and not isinstance(value, bool) and name not in derived:
            options[name] = smaller_number(name, value, sizes, getattr(config, "patch_size", 16))
    return {name: value for name, value in options.items() if value is not found[name]}


def smaller_number(name: str, value: int, sizes: dict[str, int], patch: Any) -> int:
    """The number itself where nothing says that it may be smaller."""
    if name == "image_size" and name in sizes:
        return 4 * patch if isinstance(patch, int) and patch > 4 else min(value, 64)
    if re.fullmatch(r"\w*token_(id|index)", name) and value >= N_WORDS:
        return N_WORDS - 1 - value % 9
    found = [size for pattern, size in sizes.items() if re.fullmatch(pattern, name)]
    return min([value, *found])


def with_random_weights(model_class: type, config: Any) -> nn.Module:
    """In eval mode, with weights large enough that every part of a block has an effect."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    config.use_cache = False
    model: nn.Module = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    """The first inputs that the model runs with."""
    reason = ""
    for inputs in itertools.islice(candidates(model), MOST_TRIES):
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                model(**inputs)
        except Exception as error:  # noqa: BLE001 - of any model, for any reason
            reason = reason or in_short(error)
        else:
            return inputs
    raise NotBuiltError(reason or "its inputs are unknown")


def candidates(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inputs of known names that `forward` takes: everything first, then less."""
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = {p.name for p in parameters if p.default is p.empty and p.kind not in kinds}
    known = {p.name: list(values_of(p.name, model)) for p in parameters}
    named = [name for name in known if known[name]]
    missing = needed - set(named)
    if missing:
        raise NotBuiltError(f"needs {', '.join(sorted(missing))}")
    for n_names in range(min(len(named), 3), 0, -1):
        for names in itertools.combinations(named, n_names):
            if needed <= set(names):
                for values in itertools.product(*(known[name] for name in names)):
                    yield dict(zip(names, values, strict=True))


def values_of(name: str, model: Any) -> Iterator[Tensor]:
    """Forms of one input, from what the configuration says of its size."""
    torch.manual_seed(1)
    if name in ("input_ids", "decoder_input_ids"):
        yield torch.randint(5, N_WORDS - 10, (N_SAMPLES, N_TOKENS))
    elif name == "bbox":
        yield torch.zeros(N_SAMPLES, N_TOKENS, 4, dtype=torch.int64)
    elif name == "pixel_values":
        n_channels = setting(model.config, "num_channels", "in_channels", "in_chans") or 3
        size = setting(model.config, "image_size", "img_size") or 64
        height, width = size if isinstance(size, list | tuple) else (size, size)
        yield torch.randn(N_SAMPLES, n_channels, height, width)
        yield torch.randn(N_SAMPLES, 2, n_channels, height, width)
    elif name == "pixel_values_videos":
        size, n_frames = (setting(model.config, key) for key in ("image_size", "num_frames"))
        yield torch.randn(N_SAMPLES, n_frames or 4, 3, size or 64, size or 64)
    elif name == "input_values":
        yield torch.randn(N_SAMPLES, 2000)
        yield torch.randn(N_SAMPLES, 1, 2000)
        n_bins, length = (setting(model.config, key) for key in ("num_mel_bins", "max_length"))
        yield torch.randn(N_SAMPLES, length or 64, n_bins or 80)
    elif name == "input_features":
        n_bins = setting(model.config, "num_mel_bins", "input_feat_per_channel", "n_mels") or 80
        length = setting(model.config, "max_source_positions") or 32
        yield torch.randn(N_SAMPLES, n_bins, 2 * length)
        yield torch.randn(
            N_SAMPLES,
            64,
            setting(model.config, "feature_projection_input_dim", "input_size") or n_bins,
        )


def setting(config: Any, *names: str) -> Any:
    """The first of these settings that the configuration, or one inside it, has."""
    inside = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for place in (config, *inside):
        for name in names:
            if getattr(place, name, None) is not None:
                return getattr(place, name)
    return None


def in_short(error: Exception) -> str:
    """An error as a reason that fits into a table, the same on every machine."""
    text = " ".join(str(error).split()).translate(str.maketrans("|<>[]", "/()()"))
    text = re.sub(r"0x[0-9a-f]+|/\S*/", "", text)
    text = text if len(text) <= 90 else f"{text[:87]}..."
    return text if isinstance(error, NotBuiltError) else f"{type(error).__name__}: {text}"
