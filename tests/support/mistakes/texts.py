"""Texts, tokenizers, and files of either."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from fastcap.datasets import LineFile
from tests.support.huggingface import (
    CHATS,
    N_POSITIONS,
    TEXTS,
    alone,
    make_bert,
    make_gpt2,
    make_llama,
    make_t5,
    make_tokenizer,
)
from tests.support.mistakes.case import Case

SITE = "layers.1"


def run(texts: Any, site: Any = SITE, **options: Any) -> Any:
    """`fastcap.huggingface.extract` of the last token of each text."""
    from fastcap.huggingface import extract

    model = options.pop("model", None) or make_llama()
    given = {"tokenizer": make_tokenizer(), "positions": "last", **options}
    found = extract(model, texts, site, **given)
    return found[site] if isinstance(site, str) and site in found else found


def one_by_one(texts: Iterable[str] = TEXTS) -> torch.Tensor:
    """The last token of each text, run without the others."""
    model, tokenizer = make_llama(), make_tokenizer()
    return torch.stack([alone(model, tokenizer, text, SITE)[-1] for text in texts])


def close(found: Any) -> Any:
    """Whether values are those of each text on its own, but for rounding."""
    return bool(torch.allclose(found, one_by_one(), atol=1e-5))


def file_of(name: str, *lines: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        shown = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(shown), encoding="utf-8")
        return path

    return write


def of_bytes(folder: Path, content: bytes) -> Path:
    path = folder / "a.txt"
    path.write_bytes(content)
    return path


def without_template() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


HF = "transformers"

TEXT = [
    Case("one text and not a list", lambda _: run("one two"), needs=HF),
    Case("the name of a file, as a string", lambda _: run("texts.txt"), needs=HF),
    Case("no texts", lambda _: run([]), needs=HF),
    Case("`None`", lambda _: run(None), needs=HF),
    Case("a dict", lambda _: run({"text": "one"}), needs=HF),
    Case("a list with `None` in it", lambda _: run(["one", None]), needs=HF),
    Case("a list with a number in it", lambda _: run(["one", 2]), needs=HF),
    Case("a list of bytes", lambda _: run([b"one"]), needs=HF),
    Case("half a surrogate pair", lambda _: run(["one", "two \ud83d"]), needs=HF),
    Case("one chat and not a list of chats", lambda _: run(CHATS[0]), needs=HF),
    Case("texts and chats in one list", lambda _: run([*CHATS, "one"]), needs=HF),
    Case("a chat without messages", lambda _: run([[]]), needs=HF),
    Case(
        "chats, and a tokenizer without a template",
        lambda _: run(CHATS, tokenizer=without_template()),
        needs=HF,
    ),
    Case(
        "texts of several lengths",
        lambda _: close(run(TEXTS)),
        lambda: True,
        "The last token of each, as for the text alone",
        needs=HF,
    ),
    Case(
        "the same, padded on the left",
        lambda _: close(run(TEXTS, padding_side="left")),
        lambda: True,
        "The last token of each, as for the text alone",
        needs=HF,
    ),
    Case(
        "texts of several lengths, and every position",
        lambda _: run(TEXTS, positions=None, batch_size=2),
        needs=HF,
    ),
    Case(
        "an empty text, which has no token but the first",
        lambda _: run([""]),
        lambda: one_by_one([""]),
        "The token that the tokenizer puts first",
        needs=HF,
    ),
    Case(
        "words that the tokenizer does not know",
        lambda _: run(["eleven"]),
        lambda: one_by_one(["eleven"]),
        "As its unknown token",
        needs=HF,
    ),
    Case(
        "a text that is too long", lambda _: run(["one " * 99], "h.1", model=make_gpt2()), needs=HF
    ),
    Case(
        "`max_tokens` beyond the model's positions",
        lambda _: run(TEXTS, "h.1", model=make_gpt2(), max_tokens=N_POSITIONS + 1),
        needs=HF,
    ),
    Case(
        "`max_tokens=1`, which leaves no room for text",
        lambda _: run(TEXTS, max_tokens=1),
        needs=HF,
    ),
    Case("`max_tokens=0`", lambda _: run(TEXTS, max_tokens=0), needs=HF),
    Case(
        "`max_tokens=` and `max_length=`",
        lambda _: run(TEXTS, max_tokens=8, max_length=8),
        needs=HF,
    ),
    Case("`padding_side='middle'`", lambda _: run(TEXTS, padding_side="middle"), needs=HF),
    Case("a built model, and no tokenizer", lambda _: run(TEXTS, tokenizer=None), needs=HF),
    Case("the name of a tokenizer in its place", lambda _: run(TEXTS, tokenizer="gpt2"), needs=HF),
    Case(
        "a tokenizer without a token to pad with",
        lambda _: run(TEXTS, tokenizer=make_tokenizer(eos_token=None)),
        needs=HF,
    ),
    Case(
        "`model_dtype=`, of a model that is built",
        lambda _: run(TEXTS, model_dtype=torch.float16),
        needs=HF,
    ),
    Case("a number in place of the model", lambda _: run(TEXTS, model=3), needs=HF),
    Case(
        "a folder that is no model",
        lambda folder: run(TEXTS, model=folder, tokenizer=None),
        needs=HF,
    ),
    Case("an encoder-decoder", lambda _: run(TEXTS, "encoder.block.0", model=make_t5()), needs=HF),
    Case("an unknown alias, `resid`", lambda _: run(TEXTS, "resid"), needs=HF),
    Case(
        "a block that the model does not have", lambda _: run(TEXTS, "residual", blocks=7), needs=HF
    ),
    Case("`blocks=` and the name of a module", lambda _: run(TEXTS, SITE, blocks=0), needs=HF),
    Case(
        "a text without tokens",
        lambda _: run(["", "one"], "encoder.layer.1", model=make_bert(), tokenizer=bare()),
        needs=HF,
    ),
]


def bare() -> Any:
    """A tokenizer that puts no token of its own before a text."""
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


LINES = [
    Case(
        "a file that does not exist",
        lambda folder: run(folder / "a.txt"),
        system=FileNotFoundError,
        needs=HF,
    ),
    Case("a `.csv`", lambda folder: run(file_of("a.csv", "one")(folder)), needs=HF),
    Case("a `.txt` that is not UTF-8", lambda folder: run(of_bytes(folder, b"caf\xe9")), needs=HF),
    Case(
        "a `.jsonl` with a line that is not JSON",
        lambda folder: run(file_of("a.jsonl", {"text": "one"}, "two")(folder)),
        needs=HF,
    ),
    Case(
        "a `.jsonl` with a list in a line",
        lambda folder: run(file_of("a.jsonl", [1])(folder)),
        needs=HF,
    ),
    Case(
        "a `.jsonl` whose texts have another key",
        lambda folder: run(file_of("a.jsonl", {"txt": "one"})(folder)),
        needs=HF,
    ),
    Case(
        "a `.jsonl` whose text is a number",
        lambda folder: run(file_of("a.jsonl", {"text": 3})(folder)),
        needs=HF,
    ),
    Case(
        "a `.jsonl` with half a surrogate pair",
        lambda folder: run(file_of("a.jsonl", '{"text": "\\ud83d"}')(folder)),
        needs=HF,
    ),
    Case(
        "a `.txt` with a byte order mark and Windows line ends",
        lambda folder: run(of_bytes(folder, b"\xef\xbb\xbfone two\r\nsix\r\n"), batch_size=1),
        lambda: one_by_one(["one two", "six"]),
        "A text for each line",
        needs=HF,
    ),
    Case(
        "a blank line, in a `LineFile`",
        lambda folder: LineFile(file_of("a.txt", "one", "", "two")(folder)),
    ),
    Case("an empty `LineFile`", lambda folder: LineFile(file_of("a.txt")(folder))),
    Case(
        "a `LineFile` that does not exist",
        lambda folder: LineFile(folder / "a.txt"),
        system=FileNotFoundError,
    ),
    Case("a `LineFile` of a `.csv`", lambda folder: LineFile(file_of("a.csv", "one")(folder))),
    Case(
        "texts and chats, in a `LineFile`",
        lambda folder: LineFile(file_of("a.jsonl", {"text": "one"}, {"text": CHATS[0]})(folder)),
    ),
    Case(
        "a column that is missing in a line",
        lambda folder: LineFile(
            file_of("a.jsonl", {"text": "one", "y": 1}, {"text": "two"})(folder), columns=["y"]
        ),
    ),
    Case(
        "a column of numbers and texts",
        lambda folder: LineFile(
            file_of("a.jsonl", {"text": "one", "y": 1}, {"text": "two", "y": "b"})(folder),
            columns=["y"],
        ),
    ),
    Case(
        "columns of a `.txt`",
        lambda folder: LineFile(file_of("a.txt", "one")(folder), columns=["y"]),
    ),
]

GROUPS = {"Texts and tokenizers": TEXT, "Files of texts": LINES}
