"""Texts, chats and files, and the batches that become of them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcap.errors import ArgumentError, ArgumentTypeError, BatchError
from fastcap.huggingface import Collator, read_texts
from fastcap.huggingface.texts import each_item
from tests.support.errors import message_of
from tests.support.huggingface import (
    CHATS,
    N_POSITIONS,
    SIZES,
    SPECIAL_IDS,
    TEXTS,
    VOCABULARY_SIZE,
    config,
    make,
    make_bert,
    make_gpt2,
    make_llama,
    make_roberta,
    make_t5,
    make_tokenizer,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_has_one_text_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "\ufeffone two\n\nthrée \u2028 four\n")
    assert list(read_texts(path)) == ["one two", "", "thrée \u2028 four"]
    assert list(read_texts(str(path))) == list(read_texts(path))


def test_a_jsonl_file_has_one_text_or_chat_per_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "id": 1}) for text in TEXTS]
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert list(read_texts(path)) == TEXTS
    chats = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"turns": chat}) for chat in CHATS))
    assert list(read_texts(chats, "turns")) == CHATS


def test_files_are_read_in_place(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", "one\ntwo\n"), write(tmp_path / "b.txt", "four")
    assert list(each_item(a)) == ["one", "two"]
    assert list(each_item([a, "three", b])) == ["one", "two", "three", "four"]
    assert list(each_item(text for text in TEXTS)) == TEXTS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"txt": "one"}', "no 'text', but the keys ['txt']. Say which key holds the text with "),
        ("[1]", 'a list, not a JSON object such as {"text": ...}.'),
        ("one", "not JSON (Expecting value: line 1 column 1 (char 0)): 'one'."),
        ("", "not JSON (Expecting value: line 1 column 1 (char 0)): ''."),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "one"}}\n{line}\n')
    message = message_of(ArgumentError, lambda: list(read_texts(path)))
    assert message.startswith(f"{path}, line 2: {expected}")


def test_a_value_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": 3}')
    message = message_of(ArgumentTypeError, lambda: list(read_texts(path)))
    assert message == (
        f"{path}, line 1, 'text' is neither a text nor a chat but int: 3. A text is a string; a "
        "chat is a list of {'role': ..., 'content': ...}."
    )


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert message_of(ArgumentError, lambda: list(read_texts("a.csv"))) == (
        "'a.csv' ends in '.csv'. Texts are read from .txt (one per line) and .jsonl (one JSON "
        "object per line); read anything else yourself and pass a list."
    )
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9 au lait")
    message = message_of(ArgumentError, lambda: list(read_texts(path)))
    assert message.startswith(f"{path} is not UTF-8: 'utf-8' codec can't decode byte 0xe9")
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"):
        list(read_texts(tmp_path / "missing.txt"))


WRONG_TEXTS: list[Any] = [
    pytest.param(
        "A text.",
        "texts is one string: 'A text.'. Pass a list, [text], or for a file pathlib.Path(name).",
        id="str",
    ),
    pytest.param(
        3, "texts must be a list of texts or chats, or the path of a file; got int.", id="int"
    ),
    pytest.param(
        {"text": "one"},
        "texts must be a list of texts or chats, or the path of a file; got dict.",
        id="dict",
    ),
    pytest.param(
        ["one", None],
        "texts[1] is neither a text nor a chat but NoneType: None. A text is a string; a chat is a "
        "list of {'role': ..., 'content': ...}.",
        id="none",
    ),
    pytest.param(
        [[]],
        "texts[0] is neither a text nor a chat but list: []. A text is a string; a chat is a list "
        "of {'role': ..., 'content': ...}.",
        id="empty chat",
    ),
    pytest.param(
        CHATS[0],
        "texts[0] is one message. A chat is a list of messages, and texts a list of chats: wrap it "
        "once more.",
        id="one chat",
    ),
]


@pytest.mark.parametrize(("texts", "expected"), WRONG_TEXTS)
def test_what_is_no_text_is_refused(texts: Any, expected: str) -> None:
    assert message_of(ArgumentTypeError, lambda: list(each_item(texts))) == expected


def test_texts_and_chats_are_not_mixed() -> None:
    mixed: Any = [*CHATS, "one"]
    assert message_of(ArgumentError, lambda: list(each_item(mixed))) == (
        "texts mixes texts and chats, which are tokenized differently. Extract them in two calls, "
        "or make each text a chat: [{'role': 'user', 'content': text}]."
    )


def test_batches_are_padded_on_the_right_and_keep_the_order() -> None:
    collator = Collator(make_llama(), make_tokenizer())
    first, last = collator.batches(TEXTS[:3], batch_size=2)
    assert collator.model_inputs == ["attention_mask"]
    assert first["input_ids"].tolist() == [[1, 5, 6, 7, 8, 9], [1, 10, 2, 2, 2, 2]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert last["input_ids"].tolist() == [[1, 11, 12, 13]]


def test_left_padding_counts_real_tokens() -> None:
    collator = Collator(make_gpt2(), make_tokenizer(), padding_side="left")
    (batch,) = collator.batches(TEXTS[:2])
    assert collator.model_inputs == ["attention_mask", "position_ids"]
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 8, 9], [2, 2, 2, 2, 1, 10]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]]


def test_roberta_counts_from_the_row_after_its_padding() -> None:
    model = make_roberta()
    collator = Collator(model, make_tokenizer(), padding_side="left")
    (batch,) = collator.batches(TEXTS[:2])
    assert batch["position_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 2]]
    n_positions = N_POSITIONS - 1
    collator = Collator(model, make_tokenizer(), max_tokens=n_positions)
    (batch,) = collator.batches(["one " * N_POSITIONS])
    assert batch["input_ids"].shape == (1, n_positions)
    with torch.no_grad():
        model(**batch)


def test_token_types_are_passed_to_models_that_take_them() -> None:
    tokenizer = make_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    (batch,) = Collator(make_bert(), tokenizer).batches(TEXTS[:2])
    assert list(batch) == ["input_ids", "attention_mask", "token_type_ids"]
    (batch,) = Collator(make_llama(), tokenizer).batches(TEXTS[:2])
    assert list(batch) == ["input_ids", "attention_mask"]


def test_the_tokenizer_is_not_changed() -> None:
    tokenizer = make_tokenizer()
    list(Collator(make_llama(), tokenizer, padding_side="left").batches(TEXTS))
    assert tokenizer.pad_token is None
    assert tokenizer(["one", "two"])["input_ids"] == [[1, 5], [1, 6]]


def test_a_pad_token_that_is_there_is_used() -> None:
    (batch,) = Collator(make_llama(), make_tokenizer(pad_token="<unk>")).batches(TEXTS[:2])
    assert batch["input_ids"][1].tolist() == [1, 10, 0, 0, 0, 0]


def test_no_token_to_pad_with_is_refused() -> None:
    tokenizer = make_tokenizer(eos_token=None)
    message = message_of(ArgumentError, lambda: Collator(make_llama(), tokenizer))
    assert message == (
        f"This {type(tokenizer).__name__} has neither a pad token nor an end-of-sequence token, so "
        "batches cannot be padded. Set one: tokenizer.pad_token = '<token>', of "
        "tokenizer.get_vocab(). The mask covers it, so any will do."
    )


def test_a_tokenizer_is_an_object() -> None:
    message = message_of(ArgumentTypeError, lambda: Collator(make_llama(), "a-folder"))
    assert message == (
        "tokenizer must be a tokenizer of transformers; got 'a-folder'. Load one with "
        "transformers.AutoTokenizer.from_pretrained(folder)."
    )


def test_chats_are_written_by_the_template_and_get_no_special_tokens_twice() -> None:
    tokenizer = make_tokenizer()
    (batch,) = Collator(make_llama(), tokenizer).batches(CHATS)
    assert batch["input_ids"].tolist() == [[3, 5, 6, 2, 2, 2, 2, 2], [3, 10, 2, 4, 11, 12, 13, 2]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 8]
    (batch,) = Collator(make_llama(), tokenizer, add_generation_prompt=True).batches(CHATS[:1])
    assert batch["input_ids"].tolist() == [[3, 5, 6, 2, 4]]


def test_a_tokenizer_without_a_template_is_refused_chats() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    collator = Collator(make_llama(), tokenizer)
    assert message_of(ArgumentError, lambda: collator(CHATS)) == (
        f"This {type(tokenizer).__name__} has no chat template, so it cannot write a chat as text. "
        "Use the tokenizer of a chat model, set tokenizer.chat_template, or pass texts."
    )


def test_texts_are_cut_where_asked_special_tokens_included() -> None:
    (same,) = Collator(make_llama(), make_tokenizer(), max_length=3).batches(TEXTS[:2])
    (batch,) = Collator(make_llama(), make_tokenizer(), max_tokens=3).batches(TEXTS[:2])
    assert batch["input_ids"].equal(same["input_ids"])
    assert batch["input_ids"].tolist() == [[1, 5, 6], [1, 10, 2]]
    (batch,) = Collator(make_llama(), make_tokenizer(), max_tokens=1).batches(CHATS)
    assert batch["input_ids"].tolist() == [[3], [3]]


def test_a_text_beyond_the_positions_is_refused() -> None:
    collator = Collator(make_gpt2(), make_tokenizer())
    text = "one " * N_POSITIONS
    assert message_of(BatchError, lambda: collator(["two", text])) == (
        f"A text has {N_POSITIONS + 1} tokens, and GPT2Model has {N_POSITIONS} positions: "
        f"{text[:40]!r}... Cut texts with max_tokens={N_POSITIONS}, or split them."
    )
    assert collator(["one " * (N_POSITIONS - 1)])["input_ids"].shape == (1, N_POSITIONS)


def test_a_model_that_counts_distances_takes_any_length() -> None:
    collator = Collator(make_t5().get_encoder(), make_tokenizer(), padding_side="left")
    assert collator.model_inputs == ["attention_mask"]
    assert collator(["one " * 600])["input_ids"].shape == (1, 601)


COMPUTED: dict[str, Callable[[], Any]] = {
    "rotary": make_llama,
    "rotary encoder": lambda: make(
        config("Esm", **SIZES, position_embedding_type="rotary", pad_token_id=2, mask_token_id=1)
    ),
    "relative": lambda: make(
        config(
            "DebertaV2",
            **SIZES,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["c2p"],
            position_buckets=4,
        )
    ),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_models_without_a_table_of_positions_go_beyond_their_length_when_asked(kind: str) -> None:
    model, tokenizer = COMPUTED[kind](), make_tokenizer()
    text, n_tokens = "one two " * N_POSITIONS, 2 * N_POSITIONS + 1
    message = message_of(BatchError, lambda: Collator(model, tokenizer)([text]))
    assert message.endswith(
        f"Model is configured for {N_POSITIONS}: {text[:40]!r}... Cut texts with "
        f"max_tokens={N_POSITIONS}, or split them. Its positions are computed: "
        f"max_tokens={n_tokens} goes beyond."
    )
    batch = Collator(model, tokenizer, max_tokens=n_tokens)([text])
    assert batch["input_ids"].shape == (1, n_tokens)
    with torch.no_grad():
        assert model(**batch).last_hidden_state.isfinite().all()


def test_a_table_that_is_no_embedding_bounds_the_texts_too() -> None:
    sizes = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
    model = make(config("GPTJ", **sizes, vocab_size=VOCABULARY_SIZE, **SPECIAL_IDS))
    assert (
        message_of(ArgumentError, lambda: Collator(model, make_tokenizer(), max_tokens=33))
        == "max_tokens=33, but GPTJModel has 32 positions. Pass at most max_tokens=32."
    )


def test_max_tokens_lies_between_the_special_tokens_and_the_positions() -> None:
    tokenizer = make_tokenizer()
    too_many = message_of(ArgumentError, lambda: Collator(make_gpt2(), tokenizer, max_tokens=33))
    assert too_many == (
        "max_tokens=33, but GPT2Model has 32 positions. Pass at most max_tokens=32."
    )
    too_few = message_of(
        ArgumentError, lambda: Collator(make_gpt2(), tokenizer, max_tokens=1)(["one"])
    )
    assert too_few == (
        "max_tokens=1 leaves no room for text: the tokenizer adds 1 special tokens. Pass at least "
        "max_tokens=2."
    )
    both = message_of(
        ArgumentError, lambda: Collator(make_gpt2(), tokenizer, max_tokens=8, max_length=8)
    )
    assert both == (
        "max_tokens=8 and max_length=8: these are two names of one option. Pass one of them."
    )
    none = message_of(ArgumentError, lambda: Collator(make_gpt2(), tokenizer, max_tokens=0))
    assert none == "max_tokens must be at least 1; got 0."


def test_a_text_without_tokens_is_refused() -> None:
    collator = Collator(make_bert(), make_tokenizer())
    assert collator([""])["input_ids"].tolist() == [[1]]
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    collator = Collator(make_bert(), tokenizer)
    assert message_of(BatchError, lambda: collator(["one", ""])) == (
        "The text '' has no tokens, so there is nothing to run. Leave it out."
    )


def test_a_side_is_left_or_right() -> None:
    message = message_of(
        ArgumentError, lambda: Collator(make_gpt2(), make_tokenizer(), padding_side="up")
    )
    assert message == "padding_side must be 'right' or 'left'; got 'up'."


def test_left_padding_is_refused_where_it_would_shift_positions() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wpe = torch.nn.Embedding(8, 4)

        def forward(self, input_ids: Any, attention_mask: Any) -> Any: ...

    message = message_of(
        ArgumentError, lambda: Collator(Model(), make_tokenizer(), padding_side="left")
    )
    assert message == (
        "padding_side='left' would shift the positions of Model, which learns one vector per "
        "position and takes no position_ids. Use padding_side='right'."
    )


def test_a_wrapped_model_is_looked_into() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any, **options: Any) -> Any:
            return self.module(*args, **options)

    collator = Collator(Wrapper(make_gpt2()), make_tokenizer(), padding_side="left")
    assert collator.model_inputs == ["attention_mask", "position_ids"]


def test_a_collator_can_go_to_other_processes() -> None:
    collator = Collator(make_gpt2(), make_tokenizer(), padding_side="left")
    copied = pickle.loads(pickle.dumps(collator))
    for key, value in collator(TEXTS).items():
        assert copied(TEXTS)[key].equal(value)
