"""Texts and chats in files of lines, by random access."""

from __future__ import annotations

import hashlib
import os
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from fastcap.errors import ArgumentError
from fastcap.formatting import a_kind
from fastcap.huggingface.texts import Chat, as_item, is_chat, parse_object

SUFFIXES = (".txt", ".jsonl")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
INT64 = 1 << 63
NUMBERS = (bool, int, float)


class LineFile(Dataset[dict[str, Any]]):
    r"""One sample per line of a `.txt` or `.jsonl` file; UTF-8.

    Every line is read and checked once, at the start, so that a run does not fail hours in. Only
    the offset of each line is kept, 8 bytes per line.

    Args:
        path: A `.txt` file, one text per line, or a `.jsonl` file, one JSON object per line.
        text_key: The key of a text or chat, in the objects and in the samples.
        columns: Additional keys of the objects: numbers, booleans or texts.

    Raises:
        ArgumentError: An empty file, a blank line, a line that cannot be read or lacks a key,
            texts mixed with chats, or a column of mixed kinds; the error names the line.
        FileNotFoundError: No such file.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "texts.jsonl"
        >>> _ = path.write_text('{"text": "One.", "label": 1}\n{"text": "Two.", "label": 0}\n')
        >>> dataset = LineFile(path, columns=["label"])
        >>> len(dataset), dataset[1]
        (2, {'text': 'Two.', 'label': 0})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        text_key: str = "text",
        columns: Sequence[str] = (),
    ) -> None:
        self.path = Path(path)
        self._suffix = self.path.suffix.lower()
        self._text_key = text_key
        self._columns = [columns] if isinstance(columns, str) else list(columns)
        if self._suffix not in SUFFIXES:
            raise ArgumentError(
                f"{self.path} ends in {self.path.suffix!r}. Texts are read from .txt (one per "
                "line) and .jsonl (one JSON object per line)."
            )
        if self._columns and self._suffix == ".txt":
            raise ArgumentError(
                f"{self.path} has a text per line and no columns, and {self._columns} were asked. "
                "Write a .jsonl file with one object per line."
            )
        self._starts = array("Q")
        self._kinds: dict[str, type] = {}
        self._sha256 = self._index()
        self._open()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        which = range(len(self))[index]
        start, stop = self._starts[which], self._starts[which + 1]
        sample = self._parse(os.pread(self._fd, stop - start, start), which + 1)
        return sample | {column: self._kinds[column](sample[column]) for column in self._columns}

    def fingerprint(self) -> dict[str, Any]:
        """The hash of the file's bytes, and what is taken of them; not the path."""
        return {"sha256": self._sha256, "text_key": self._text_key, "columns": self._columns}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fd"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        if os.fstat(self._fd).st_size != self._starts[-1]:
            raise ArgumentError(
                f"{self.path} has changed since it was opened first. Leave it as it is during a "
                "run."
            )

    def _index(self) -> str:
        digest = hashlib.sha256()
        start, is_chats = 0, None
        for number, line in enumerate(self._lines(), start=1):
            digest.update(line)
            self._starts.append(start)
            start += len(line)
            sample = self._parse(line, number)
            is_chats = self._check_kind(sample[self._text_key], is_chats, number)
            for column in self._columns:
                self._widen(column, sample[column], number)
        self._starts.append(start)
        if not len(self):
            raise ArgumentError(f"{self.path} is empty: it has no lines.")
        return digest.hexdigest()

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as lines:
            yield from lines

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        try:
            text = line.removeprefix(BYTE_ORDER_MARK if number == 1 else b"").decode()
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{where} is not UTF-8: {error}. Convert the file first.") from None
        text = text.rstrip("\r\n")
        if not text.strip():
            raise ArgumentError(
                f"{where} is blank. Samples are numbered by line, so remove it first, for example "
                f"with: sed -i '/^\\s*$/d' {self.path.name}"
            )
        if self._suffix == ".txt":
            return {self._text_key: text}
        found = parse_object(text, where)
        for key in (self._text_key, *self._columns):
            if key not in found:
                raise ArgumentError(f"{where}: no {key!r}, but the keys {sorted(found)}.")
        item = as_item(found[self._text_key], f"{where}, {self._text_key!r}")
        return {self._text_key: item} | {column: found[column] for column in self._columns}

    def _check_kind(self, item: str | Chat, is_chats: bool | None, number: int) -> bool:
        if is_chats not in (None, is_chat(item)):
            what, others = ("a chat", "texts") if is_chat(item) else ("a text", "chats")
            raise ArgumentError(
                f"{self.path}, line {number}: {what}, and the lines before are {others}, which are "
                "tokenized differently. Put them into two files."
            )
        return is_chat(item)

    def _widen(self, column: str, value: Any, number: int) -> None:
        """A column is texts, or the narrowest of bool, int and float that holds all."""
        kind, earlier = type(value), self._kinds.get(column, type(value))
        is_known = kind in (str, *NUMBERS) and (kind is not int or -INT64 <= value < INT64)
        if not is_known or (kind is str) != (earlier is str):
            before = f", and it was {a_kind(earlier)} before" if is_known else ""
            raise ArgumentError(
                f"{self.path}, line {number}, {column!r}: {value!r:.40} is {a_kind(kind)}"
                f"{before}. A column holds 64-bit numbers or texts, the same in every line."
            )
        self._kinds[column] = str if kind is str else max(kind, earlier, key=NUMBERS.index)
