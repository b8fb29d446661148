"""What callers give as texts: texts, chats, and files of either."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fastcap.errors import ArgumentError, ArgumentTypeError

Chat: TypeAlias = Sequence[Mapping[str, Any]]
"""Messages, each with `"role"` and `"content"`."""

Texts: TypeAlias = "os.PathLike[str] | Iterable[str | Chat | os.PathLike[str]]"
"""What callers may pass as `texts`."""


def read_texts(path: str | os.PathLike[str], text_key: str = "text") -> Iterator[str | Chat]:
    r"""Yield the texts of a file, one at a time, in order.

    Args:
        path: A `.txt` file, one text per line, or a `.jsonl` file, one JSON object per line; UTF-8.
        text_key: The key of the text or chat in a JSON object.

    Returns:
        Texts (strings), or chats (lists of `{"role": ..., "content": ...}`). A blank line of a
        `.txt` file is an empty text.

    Raises:
        ArgumentError: Neither `.txt` nor `.jsonl`, not UTF-8, or a line without the key; names the
            line.
        FileNotFoundError: No such file.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "texts.jsonl"
        >>> _ = path.write_text('{"text": "One."}\n{"text": "Two."}\n')
        >>> list(read_texts(path))
        ['One.', 'Two.']
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".txt", ".jsonl"):
        raise ArgumentError(
            f"{str(path)!r} ends in {path.suffix!r}. Texts are read from .txt (one per line) and "
            ".jsonl (one JSON object per line); read anything else yourself and pass a list."
        )
    # A line ends in a line feed, as in LineFile; a carriage return alone belongs to a text.
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\r\n")
                where = f"{path}, line {number}"
                yield as_item(text, where) if suffix == ".txt" else _parse(text, text_key, where)
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{path} is not UTF-8: {error}. Convert it first.") from error


def _parse(line: str, text_key: str, where: str) -> str | Chat:
    found = parse_object(line, where)
    if text_key not in found:
        raise ArgumentError(
            f"{where}: no {text_key!r}, but the keys {sorted(found)}. Say which key holds the text "
            "with text_key=."
        )
    return as_item(found[text_key], f"{where}, {text_key!r}")


def parse_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object of one line; `where` is what the errors call it."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{where}: not JSON ({error}): {_short(line)}.") from None
    if not isinstance(found, dict):
        raise ArgumentError(
            f'{where}: a {_kind(found)}, not a JSON object such as {{"text": ...}}.'
        )
    return found


def each_item(texts: Texts, text_key: str = "text") -> Iterator[str | Chat]:
    """Every text or chat, with files read in place.

    Raises:
        ArgumentError: Texts and chats are mixed.
        ArgumentTypeError: Something is neither.
    """
    is_chats: bool | None = None
    for item in _unpacked(texts, text_key):
        if is_chats is None:
            is_chats = is_chat(item)
        elif is_chats != is_chat(item):
            raise ArgumentError(
                "texts mixes texts and chats, which are tokenized differently. Extract them in two "
                "calls, or make each text a chat: [{'role': 'user', 'content': text}]."
            )
        yield item


def _unpacked(texts: Texts, text_key: str) -> Iterator[str | Chat]:
    if isinstance(texts, str):
        raise ArgumentTypeError(
            f"texts is one string: {_short(texts)}. Pass a list, [text], or for a file "
            "pathlib.Path(name)."
        )
    if isinstance(texts, os.PathLike):
        yield from read_texts(texts, text_key)
        return
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
        raise ArgumentTypeError(
            f"texts must be a list of texts or chats, or the path of a file; got {_kind(texts)}."
        )
    for index, item in enumerate(texts):
        if isinstance(item, os.PathLike):
            yield from read_texts(item, text_key)
        else:
            yield as_item(item, f"texts[{index}]")


def is_chat(item: str | Chat) -> bool:
    """Whether a checked item is a chat, and not a text."""
    return not isinstance(item, str)


def as_item(item: Any, where: str) -> str | Chat:
    """Check that something is a text or a chat; `where` is what the errors call it."""
    if isinstance(item, str):
        _check_characters(item, where)
        return item
    if isinstance(item, Mapping) and "role" in item:
        raise ArgumentTypeError(
            f"{where} is one message. A chat is a list of messages, and texts a list of chats: "
            "wrap it once more."
        )
    if isinstance(item, list | tuple) and item and all(map(_is_message, item)):
        for number, message in enumerate(item):
            if isinstance(message["content"], str):
                _check_characters(message["content"], f"{where}, message {number}")
        return item
    raise ArgumentTypeError(
        f"{where} is neither a text nor a chat but {_kind(item)}: {_short(item)}. A text is a "
        "string; a chat is a list of {'role': ..., 'content': ...}."
    )


def _check_characters(text: str, where: str) -> None:
    """Refuse what no tokenizer can encode, before a run begins."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(
            f"{where}: character {error.start} is half of a surrogate pair, "
            f"{text[error.start]!r}, and not a character. Mend the text where it comes from, or "
            "replace it: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        ) from None


def _is_message(item: Any) -> bool:
    return isinstance(item, Mapping) and "role" in item and "content" in item


def _kind(item: Any) -> str:
    return type(item).__name__


def _short(item: Any) -> str:
    text = repr(item)
    return text if len(text) <= 60 else f"{text[:57]}..."
