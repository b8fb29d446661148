"""Token ids in files, memory-mapped."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastcap.errors import ArgumentError, BatchError
from fastcap.spec import as_count
from fastcap.warn import warn

RAW_DTYPES = ("uint16", "uint32")
RAW_SUFFIX = ".bin"
NOT_RAW = {
    b"PK\x03\x04": "a zip file, as torch.save() writes it",
    b"\x93NUM": "a .npy file",
    (20240520).to_bytes(4, "little"): "tokens behind a header of 1,024 bytes, as llm.c writes them",
}
"""How files begin that are called `.bin` too. As ids, all are far beyond a text's beginning."""
SAMPLED = 64
"""Samples that a fingerprint reads."""


class TokenFile(Dataset[dict[str, Tensor]]):
    """Samples of a fixed number of token ids, from a `.npy` file or from raw binary integers.

    The file is memory-mapped: it can have any size, and processes share its pages.

    Args:
        path: A `.npy` file of integers, `(n_samples, n_tokens)` or one long `(n_tokens,)`; or a
            `.bin` file of raw little-endian integers without a header.
        context_length: Tokens per sample, for a file that is one long row. Tokens at the end that
            do not fill a sample are dropped, with a warning.
        dtype: Of a raw file, `"uint16"` or `"uint32"`. A `.npy` file has its own.
        vocabulary_size: The model's vocabulary size. Each sample is checked as it is read, since an
            out-of-range id crashes an accelerator. `None`: ids are only checked not to be negative.

    Attributes:
        path: The file.
        n_left_over: Tokens dropped at the end of the file.

    Raises:
        ArgumentError: The file is of another kind or empty, has another shape or dtype or a partial
            id at its end, or the options do not fit it.
        BatchError: On reading a sample: an id is out of range.
        FileNotFoundError: No such file.

    Examples:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "train.bin"
        >>> np.arange(12, dtype="<u2").tofile(path)
        >>> dataset = TokenFile(path, context_length=4, dtype="uint16")
        >>> len(dataset), dataset[-1]
        (3, {'input_ids': tensor([ 8,  9, 10, 11])})
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int | None = None,
        dtype: str | None = None,
        vocabulary_size: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._length = (
            None if context_length is None else as_count("context_length", context_length)
        )
        self._dtype = dtype
        self._vocabulary_size = vocabulary_size
        self._ids = self._map()
        if self.n_left_over:
            warn(
                f"The last {self.n_left_over} tokens of {self.path} do not fill a sample of "
                f"{self._length}, and are left out."
            )

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self._ids[index]
        self._check_ids(ids, index)
        return {"input_ids": torch.from_numpy(ids.astype(np.int64))}

    @property
    def n_tokens(self) -> int:
        """Tokens of each sample."""
        return int(self._ids.shape[1])

    def fingerprint(self) -> dict[str, Any]:
        """Shape, dtype and 64 samples, evenly spread; not the path."""
        digest = hashlib.sha256()
        for index in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64)):
            digest.update(self._ids[index].tobytes())
        shape, dtype = list(self._ids.shape), self._ids.dtype.name
        return {"shape": shape, "dtype": dtype, "sampled_tokens": digest.hexdigest()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": self._ids.shape}  # a map would be sent as all its bytes

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        shape, self._ids = state["_ids"], self._map()
        if self._ids.shape != shape:
            raise ArgumentError(
                f"{self.path} has changed: it had {shape[0]} samples of {shape[1]} tokens, now "
                f"{self._ids.shape[0]} of {self._ids.shape[1]}. Leave it as it is during a run."
            )

    def _map(self) -> np.ndarray[Any, Any]:
        if not self.path.stat().st_size:
            raise ArgumentError(f"{self.path} is empty: it has no tokens.")
        self.n_left_over = 0
        flat_or_rows = self._map_npy() if self.path.suffix.lower() == ".npy" else self._map_raw()
        rows = flat_or_rows if flat_or_rows.ndim == 2 else self._chunked(flat_or_rows)
        if 0 in rows.shape:
            raise ArgumentError(
                f"{self.path} is empty: its shape is {_shape(rows)}. It needs at least one sample "
                "of one token."
            )
        return rows

    def _map_npy(self) -> np.ndarray[Any, Any]:
        try:
            ids = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, IndexError, OverflowError, EOFError, SyntaxError) as error:
            reason = str(error).rstrip(".")
            raise ArgumentError(
                f"{self.path} cannot be read as .npy: {reason}. Write it with numpy.save()."
            ) from error
        if ids.dtype.kind not in "iu":
            raise ArgumentError(
                f"{self.path} holds {ids.dtype.name}, and token ids are integers. Save them with "
                "ids.astype('uint32')."
            )
        if self._dtype not in (None, ids.dtype.name):
            raise ArgumentError(
                f"{self.path} holds {ids.dtype.name}, and dtype={self._dtype!r} was asked. Leave "
                "dtype out: a .npy file says it itself."
            )
        if ids.ndim not in (1, 2):
            raise ArgumentError(
                f"{self.path} has shape {_shape(ids)}. Token ids are (n_samples, n_tokens), or one "
                "long row (n_tokens,) with context_length."
            )
        if ids.ndim == 2 and self._length not in (None, ids.shape[1]):
            raise ArgumentError(
                f"{self.path} has samples of {ids.shape[1]} tokens, and "
                f"context_length={self._length} was asked. Leave context_length out, or save "
                "ids.reshape(-1)."
            )
        return np.asarray(ids)

    def _map_raw(self) -> np.ndarray[Any, Any]:
        # Any bytes can be read as ids, those of a table or of compressed text too.
        if self.path.suffix.lower() != RAW_SUFFIX:
            raise ArgumentError(
                f"{self.path} ends in {self.path.suffix!r}. Token ids are read from .npy, and raw "
                "ones from .bin; texts from .txt and .jsonl. Convert the file, or open it yourself "
                "and pass a dataset. Raw ids under another name: rename or link it to .bin."
            )
        with self.path.open("rb") as file:
            kind = NOT_RAW.get(file.read(4))
        if kind is not None:
            raise ArgumentError(
                f"{self.path} is {kind}, and not raw token ids. Save them with numpy.save() to a "
                ".npy file."
            )
        if self._dtype not in RAW_DTYPES:
            asked = "" if self._dtype is None else f"; got {self._dtype!r}"
            raise ArgumentError(
                f"{self.path} is raw binary, which does not say what it holds: dtype must be "
                f"'uint16' or 'uint32'{asked}."
            )
        n_bytes, dtype = self.path.stat().st_size, np.dtype(self._dtype).newbyteorder("<")
        if n_bytes % dtype.itemsize:
            raise ArgumentError(
                f"{self.path} has {n_bytes} bytes, which is not a whole number of {self._dtype} "
                f"({dtype.itemsize} bytes each). Is the dtype right, and is the file whole?"
            )
        return np.asarray(np.memmap(self.path, dtype, "r"))

    def _chunked(self, flat: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if self._length is None:
            raise ArgumentError(
                f"{self.path} is one long row of {len(flat)} tokens. Say how many make a sample: "
                "context_length."
            )
        n_samples, self.n_left_over = divmod(len(flat), self._length)
        if n_samples == 0:
            raise ArgumentError(
                f"{self.path} has {len(flat)} tokens, fewer than one sample of "
                f"context_length={self._length}."
            )
        return flat[: n_samples * self._length].reshape(n_samples, self._length)

    def _check_ids(self, ids: np.ndarray[Any, Any], index: int) -> None:
        least, most = int(ids.min()), int(ids.max())
        n_ids = self._vocabulary_size
        if least < 0 or (n_ids is not None and most >= n_ids):
            wrong = least if least < 0 else most
            has = "ids are not negative" if n_ids is None else f"the model has ids 0 to {n_ids - 1}"
            raise BatchError(
                f"{self.path}, sample {index}: token id {wrong}, but {has}. Were the tokens made "
                "with this model's tokenizer, and is the dtype right?"
            )


def _shape(ids: np.ndarray[Any, Any]) -> str:
    return str(tuple(ids.shape))
