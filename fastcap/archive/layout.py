"""What the bytes of a shard mean, and which names an archive's files have.

A shard is a safetensors file whose header is padded with spaces to a multiple of 4096 bytes: data
can be written before the header is known, and begins on a page.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.parsing import parse_object, take
from fastcap.errors import ArchiveError, ArchiveFormatError

FORMAT = 1
PAGE_BYTES = 4096
HEADER_LIMIT = 16 << 20
BLOCK_IDS = 1 << 20
MANY = 10**15
"""More samples, rows or groups than any file has: what has room for this has room for all."""
MOST_IDS = 1 << 62
SAMPLES = "samples"
OFFSETS = ":offsets"
META = "meta.json"
JOURNAL = "journal.jsonl"
UNFINISHED = ".tmp"
ORPHAN = ".orphan"

MOST_RANKS = 10**10
WRITER_NAME = re.compile(r"w-[0-9]{5,10}-[0-9]{1,10}-[0-9a-f]{8}")
SHARD_NAME = re.compile(r"[0-9]{6,10}-[0-9]{3,6}\.safetensors")

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
"""The dtypes an archive stores, by their names in safetensors."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype, stream: str) -> str:
    """The name of a dtype in safetensors.

    Raises:
        ArchiveError: It has none that every reader knows.
    """
    if dtype not in _NAMES:
        raise ArchiveError(
            f"{stream!r} has dtype {dtype}, which safetensors files cannot hold. Convert it: "
            "dtype=torch.float32, or for complex values reduce=torch.view_as_real."
        )
    return _NAMES[dtype]


def writer_name(rank: int, restart: int, unique: str) -> str:
    return f"w-{rank:05d}-{restart}-{unique}"


def shard_name(group: int, number: int) -> str:
    return f"{group:06d}-{number:03d}.safetensors"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One quantity that every sample has a value of.

    Attributes:
        name: For a site its name; `batch:<key>` for what the model was given; `label:<key>`.
        kind: `"site"`, `"batch"` or `"label"`.
        dtype: Its name in safetensors, such as `"BF16"`.
        shape: Of one sample's value; of one row of it where `is_ragged`.
        is_ragged: Whether samples have different numbers of rows.
        is_text: Whether the bytes are UTF-8 text (`dtype` is `"U8"`, and ragged).
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    is_ragged: bool = False
    is_text: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * self.torch_dtype.itemsize

    def describe(self) -> tuple[str, str, str]:
        """For people: its name, its dtype, and the shape of a sample (`n` where that differs)."""
        if self.is_text:
            return self.name, "text", ""
        sizes = [*(["n"] if self.is_ragged else []), *map(str, self.shape)]
        shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        return self.name, str(self.torch_dtype).removeprefix("torch."), shape


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def is_possible(self) -> bool:
        """Whether its strides fit 63 bits, also where a dimension is 0."""
        return prod(max(n, 1) for n in self.shape) * DTYPES[self.dtype].itemsize < 1 << 62


def shard_tensors(
    streams: Iterable[StreamSpec], n_samples: int, rows: Mapping[str, int]
) -> list[TensorSpec]:
    """The tensors of a shard, in the order of their bytes: values, then offsets, then samples.

    Args:
        streams: Those the shard holds.
        n_samples: Samples of its group.
        rows: Rows of each ragged stream in that group.
    """
    streams = list(streams)
    values = [
        TensorSpec(s.name, s.dtype, (rows[s.name] if s.is_ragged else n_samples, *s.shape))
        for s in streams
    ]
    offsets = [
        TensorSpec(s.name + OFFSETS, "I64", (n_samples + 1,)) for s in streams if s.is_ragged
    ]
    return [*values, *offsets, TensorSpec(SAMPLES, "I64", (n_samples,))]


def shard_metadata(archive: str, group: int | str) -> dict[str, str]:
    """What the header of a shard says of the whole."""
    return {"format": f"fastcap {FORMAT}", "archive": archive, "group": str(group)}


def header(tensors: Iterable[TensorSpec], metadata: Mapping[str, str], n_bytes: int = 0) -> bytes:
    """The first bytes of a shard: length, JSON and spaces, a multiple of 4096 bytes in all.

    Args:
        tensors: In the order of their bytes.
        metadata: What the header says of the whole.
        n_bytes: At least so many.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.n_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    n_bytes = max(n_bytes, -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES)
    return struct.pack("<Q", n_bytes - 8) + text.ljust(n_bytes - 8)


def check_header(first: bytes, n_bytes: int, expected: Iterable[TensorSpec], where: str) -> None:
    """Compare a shard's header with what its group must hold.

    Args:
        first: The header, and no byte more.
        n_bytes: The size of the whole file.
        expected: In the order of their bytes.
        where: What errors call the file.

    Raises:
        ArchiveFormatError: It says anything else, whatever that is.
    """
    found = parse_object(first[8:].rstrip(b" "), f"the header of {where}")
    found.pop("__metadata__", None)
    begin = 0
    for tensor in expected:
        entry = found.pop(tensor.name, None)
        end = begin + tensor.n_bytes
        wanted = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        if entry != wanted or not tensor.is_possible:
            raise ArchiveFormatError(
                f"{where}: its header does not describe {tensor.name!r} as {tensor.dtype} of shape "
                f"{list(tensor.shape)}, as the archive does."
            )
        begin = end
    if found:
        raise ArchiveFormatError(f"{where}: its header has tensors that the archive does not know.")
    if len(first) + begin != n_bytes:
        raise ArchiveFormatError(
            f"{where} has {n_bytes} bytes, and its tensors take {len(first) + begin}."
        )


def header_bytes(first: bytes, n_bytes: int, where: str) -> int:
    """How long a shard's header is, from its first 8 bytes.

    Raises:
        ArchiveFormatError: A length that no shard of this size has.
    """
    length = struct.unpack("<Q", first)[0] + 8 if len(first) == 8 else 0
    if not length or length % PAGE_BYTES or length > min(HEADER_LIMIT, n_bytes):
        raise ArchiveFormatError(f"{where} does not begin as a shard does.")
    return int(length)


def parse_stream(found: Mapping[str, Any], where: str) -> StreamSpec:
    """A stream as `meta.json` describes it.

    Raises:
        ArchiveFormatError: It is none.
    """
    name = take(found, "name", str, where)
    where = f"{where}, stream {name[:80]!r}"
    dtype, shape = take(found, "dtype", str, where), take(found, "shape", list, where)
    if dtype not in DTYPES:
        raise ArchiveFormatError(f"{where}: unknown dtype {dtype[:20]!r}.")
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ArchiveFormatError(f"{where}: its shape is not a list of sizes.")
    spec = StreamSpec(
        name,
        take(found, "kind", str, where),
        dtype,
        tuple(shape),
        take(found, "ragged", bool, where),
        take(found, "text", bool, where),
    )
    if prod(max(n, 1) for n in shape) >= 1 << 45:
        raise ArchiveFormatError(f"{where}: its shape {shape} is larger than any that is stored.")
    if spec.is_text and (dtype, spec.shape, spec.is_ragged) != ("U8", (), True):
        raise ArchiveFormatError(f"{where}: text is stored as ragged U8, one byte per row.")
    return spec


def stream_json(spec: StreamSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "dtype": spec.dtype,
        "shape": list(spec.shape),
        "ragged": spec.is_ragged,
        "text": spec.is_text,
    }


def holds_samples(samples: Tensor, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether the ids of a shard are these ranges; compared in blocks, as files may be sparse."""
    row = 0
    for first, last in ranges:
        for start in range(first, last, BLOCK_IDS):
            stop = min(start + BLOCK_IDS, last)
            if not torch.equal(samples[row : row + stop - start], torch.arange(start, stop)):
                return False
            row += stop - start
    return row == len(samples)


def check_offsets(offsets: Tensor, n_rows: int, path: Path) -> None:
    grows = bool((offsets[1:] >= offsets[:-1]).all())
    if not grows or int(offsets[0]) != 0 or int(offsets[-1]) != n_rows:
        raise ArchiveFormatError(f"{path}: its offsets do not cut its rows into samples.")
