"""Tiny models and tokenizers of transformers, built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TEXTS = ["one two three four five", "six", "seven eight nine", "two two", "ten nine eight seven"]
CHATS = [
    [{"role": "user", "content": "one two"}],
    [{"role": "user", "content": "six"}, {"role": "assistant", "content": "seven eight nine"}],
]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<user>", "<assistant>"]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
VOCABULARY_SIZE = 24
N_POSITIONS = 32

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": N_POSITIONS,
}
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def make_tokenizer(pad_token: str | None = None, eos_token: str | None = "</s>") -> Any:
    """One token per word, `<s>` before every text; without a pad token unless given."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    wrap: Any = transformers.PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token=eos_token,
        pad_token=pad_token,
        chat_template=TEMPLATE,
    )


def config(name: str, **options: Any) -> Any:
    """A configuration of transformers, by the name of its architecture."""
    import transformers

    return getattr(transformers, f"{name}Config")(**options)


def make(config: Any) -> Any:
    """The model without a head, in eval mode, with weights large enough to tell texts apart."""
    import transformers

    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_llama(**options: Any) -> Any:
    return make(config("Llama", **SIZES, **SPECIAL_IDS, num_key_value_heads=1, **options))


def make_gpt2() -> Any:
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": N_POSITIONS}
    return make(config("GPT2", **sizes, vocab_size=VOCABULARY_SIZE, **SPECIAL_IDS))


def make_bert() -> Any:
    return make(config("Bert", **SIZES))


def make_roberta() -> Any:
    return make(config("Roberta", **SIZES, pad_token_id=0))


def make_t5() -> Any:
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8}
    return make(config("T5", **sizes, vocab_size=VOCABULARY_SIZE))


def save(folder: Path, make_model: Callable[[], Any] = make_llama) -> Path:
    """A folder as `save_pretrained` writes it, with model and tokenizer."""
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def alone(model: Any, tokenizer: Any, text: str, site: str) -> torch.Tensor:
    """What a site produces for one text without padding, by a plain hook."""
    found: list[Any] = []
    module = model.get_submodule(site)
    handle = module.register_forward_hook(lambda _m, _args, output: found.append(output))
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
    handle.remove()
    value = found[-1][0] if isinstance(found[-1], tuple) else found[-1]
    assert isinstance(value, torch.Tensor)
    return value[0]
