"""Small archives with known values, and the tools to change their files behind fastcap's back."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import DTYPES, JOURNAL, META, StreamSpec
from fastcap.archive.limits import GroupLimits
from fastcap.archive.meta import Meta, new_meta
from fastcap.archive.reader import Archive
from fastcap.archive.writer import Writer

STREAMS = (
    StreamSpec("layers.0", "site", "BF16", (3,)),
    StreamSpec("layers.1", "site", "F32", (2, 2)),
    StreamSpec("batch:input_ids", "batch", "I64", (), is_ragged=True),
    StreamSpec("label:text", "label", "U8", (), is_ragged=True, is_text=True),
)
TEXTS = ("", "plain", "naïve", "😀 and 👩‍🚀", "line\nline", "\x00")


def make_meta(
    streams: Sequence[StreamSpec] = STREAMS, n_samples: int | None = None, batch_size: int = 2
) -> Meta:
    return new_meta(streams, n_samples, batch_size, {"sites": "some"}, {"torch": torch.__version__})


def text_of(sample: int, salt: int = 0) -> str:
    return TEXTS[(sample + salt) % len(TEXTS)] + str(salt or "")


@lru_cache(maxsize=1 << 14)
def value_of(spec: StreamSpec, sample: int, salt: int = 0) -> Tensor:
    """The value of one sample, drawn from its id: any bytes, NaNs among them.

    Args:
        spec: The stream.
        sample: The id.
        salt: Another one gives other values.
    """
    if spec.is_text:
        return torch.tensor(list(text_of(sample, salt).encode()), dtype=torch.uint8)
    seed = zlib.crc32(f"{spec.name} {sample} {salt}".encode())
    generator = torch.Generator().manual_seed(seed)
    rows = [int(torch.randint(4, (), generator=generator))] if spec.is_ragged else []
    shape = [*rows, *spec.shape]
    top = 2 if spec.dtype == "BOOL" else 256
    n_bytes = torch.Size(shape).numel() * DTYPES[spec.dtype].itemsize
    drawn = torch.randint(top, (n_bytes,), generator=generator, dtype=torch.uint8)
    return drawn.view(DTYPES[spec.dtype]).reshape(shape)


def append(writer: Writer, samples: Sequence[int], salt: int = 0) -> None:
    """Write one batch of those values."""
    values, lengths = {}, {}
    for spec in writer.meta.streams:
        found = [value_of(spec, sample, salt) for sample in samples]
        if spec.is_ragged:
            lengths[spec.name] = [len(value) for value in found]
            values[spec.name] = cat_bytes(found)
        else:
            values[spec.name] = stack_bytes(found)
    writer.append(samples, values, lengths)


def cat_bytes(found: Sequence[Tensor]) -> Tensor:
    """`torch.cat`, of any dtype."""
    return torch.cat([_as_bytes(value) for value in found]).view(found[0].dtype)[..., 0]


def stack_bytes(found: Sequence[Tensor]) -> Tensor:
    """`torch.stack`, of any dtype."""
    return torch.stack([_as_bytes(value) for value in found]).view(found[0].dtype)[..., 0]


def _as_bytes(value: Tensor) -> Tensor:
    return value.contiguous()[..., None].view(torch.uint8)


def write_archive(
    root: Path,
    groups: Sequence[Sequence[Sequence[int]]],
    *,
    meta: Meta | None = None,
    rank: int = 0,
    salt: int = 0,
    limits: GroupLimits | None = None,
    files: LocalFiles | None = None,
) -> Writer:
    """One writer's groups of batches of ids, committed; its directory is closed.

    Args:
        root: The archive's directory.
        groups: Ids of each batch of each group.
        meta: What it holds; by default `STREAMS`.
        rank: The writer's.
        salt: See `value_of`.
        limits: When streams share a file.
        files: The file system.
    """
    writer = Writer(root, meta or make_meta(), rank=rank, limits=limits, files=files)
    for batches in groups:
        for samples in batches:
            append(writer, samples, salt)
        writer.commit()
    writer.close()
    return writer


def same(found: Any, spec: StreamSpec, sample: int, salt: int = 0) -> bool:
    """Whether a value read is the one that was written, byte for byte."""
    if spec.is_text:
        return bool(found == text_of(sample, salt))
    wanted = value_of(spec, sample, salt)
    return (
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and torch.equal(_as_bytes(found), _as_bytes(wanted))
    )


def check_values(archive: Archive, salts: dict[int, int]) -> None:
    """Every sample that should be there is, with its values, and no other.

    Args:
        archive: The archive.
        salts: By id, what the values were drawn from.
    """
    assert [i for start, stop in archive.ids for i in range(start, stop)] == sorted(salts)
    for spec in archive.meta.streams:
        for sample, salt in salts.items():
            assert same(archive[spec.name][sample], spec, sample, salt), (spec.name, sample)


@dataclass
class Tampered:
    """A writer's journal and shards, to be changed so that every checksum holds again."""

    directory: Path
    lines: list[dict[str, Any]]

    @classmethod
    def open(cls, root: Path, number: int = 0) -> Tampered:
        directory = sorted(root.glob("w-*"))[number]
        lines = (directory / JOURNAL).read_bytes().splitlines()
        return cls(directory, [json.loads(line[9:]) for line in lines])

    def save(self) -> None:
        """Write the lines, each with its checksum."""
        write(self.directory / JOURNAL, b"".join(journal_line(line) for line in self.lines))

    @property
    def group(self) -> dict[str, Any]:
        """The first group."""
        return self.lines[1]

    @property
    def file(self) -> dict[str, Any]:
        """Its first file."""
        found: dict[str, Any] = self.group["files"][0]
        return found

    @property
    def shard(self) -> Path:
        return self.directory / str(self.file["name"])

    def change_header(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the JSON of the first shard's header."""
        content = self.shard.read_bytes()
        header, data = split_shard(content)
        change(header)
        self.replace_shard(join_shard(json.dumps(header).encode(), data))

    def change_data(self, tensor: str, change: Callable[[bytearray], object]) -> None:
        """Change the bytes of one tensor of the first shard."""
        header, data = split_shard(self.shard.read_bytes())
        begin, end = header[tensor]["data_offsets"]
        changed = bytearray(data[begin:end])
        change(changed)
        data = data[:begin] + changed + data[end:]
        self.replace_shard(self.shard.read_bytes()[: -len(data)] + data)

    def replace_shard(self, content: bytes) -> None:
        """Other bytes for the first shard, which the journal agrees with."""
        n_header = min(len(content), 8 + struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0])
        write(self.shard, content)
        self.file["bytes"] = len(content)
        self.file["header_crc32"] = f"{zlib.crc32(content[:n_header]):08x}"
        self.file["data_crc32"] = f"{zlib.crc32(content[n_header:]):08x}"
        self.save()


def journal_line(record: dict[str, Any] | bytes) -> bytes:
    text = record if isinstance(record, bytes) else json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def split_shard(content: bytes) -> tuple[dict[str, Any], bytes]:
    n_header = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + n_header]), content[8 + n_header :]


def join_shard(header: bytes, data: bytes) -> bytes:
    n_bytes = -(-(8 + len(header)) // 4096) * 4096
    return struct.pack("<Q", n_bytes - 8) + header.ljust(n_bytes - 8) + data


def write(path: Path, content: bytes) -> None:
    """Replace a file, also a read-only one."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def rewrite_meta(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `meta.json`, so that its checksum holds again."""
    found = json.loads((root / META).read_bytes())
    change(found)
    write(root / META, with_crc(json.dumps(found).encode()))


def with_crc(meta: bytes) -> bytes:
    """A meta with the checksum that it should have."""
    name = b'"crc32": "'
    start = meta.index(name) + len(name)
    zeroed = meta[:start] + b"0" * 8 + meta[start + 8 :]
    return meta[:start] + b"%08x" % zlib.crc32(zeroed) + meta[start + 8 :]


def all_files(root: Path) -> Iterator[Path]:
    yield from sorted(path for path in root.rglob("*") if path.is_file())
