"""A committed shard, checked before anything of it is used."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastcap.archive.files import Files
from fastcap.archive.journal import FileRecord, GroupRecord
from fastcap.archive.layout import (
    OFFSETS,
    SAMPLES,
    check_header,
    check_offsets,
    header_bytes,
    holds_samples,
    shard_tensors,
)
from fastcap.archive.meta import Meta
from fastcap.errors import ArchiveError, ArchiveFormatError


def read_header(path: Path, n_bytes: int, files: Files) -> bytes:
    """The header of a shard of so many bytes.

    Raises:
        ArchiveFormatError: It does not begin as a shard does.
    """
    return files.read(path, header_bytes(files.read(path, 8), n_bytes, str(path)))


def check_shard(
    path: Path, group: GroupRecord, record: FileRecord, meta: Meta, files: Files
) -> bytes:
    """The header, once it is known to be the one that was committed.

    Raises:
        ArchiveFormatError: It is another.
    """
    first = read_header(path, record.n_bytes, files)
    if zlib.crc32(first) != record.header_crc32:
        raise ArchiveFormatError(f"{path}: its header is not the one that was written.")
    specs = [meta.stream(name) for name in record.streams]
    tensors = shard_tensors(specs, group.n_samples, group.rows)
    check_header(first, files.size(path), tensors, str(path))
    return first


def map_shard(
    path: Path, group: GroupRecord, record: FileRecord, meta: Meta, files: Files
) -> Mapping[str, Tensor]:
    """The tensors of a shard whose header is checked.

    Raises:
        ArchiveError: It cannot be mapped.
        ArchiveFormatError: Its ids or offsets are not those of its group.
    """
    tensors = map_file(path, files)
    if not holds_samples(tensors[SAMPLES], group.samples):
        raise ArchiveFormatError(f"{path} holds other samples than its journal says.")
    for name in record.streams:
        if meta.stream(name).is_ragged:
            check_offsets(tensors[name + OFFSETS], group.rows[name], path)
    return tensors


def map_file(path: Path, files: Files) -> Mapping[str, Tensor]:
    """The tensors of a file.

    Raises:
        ArchiveError: It cannot be mapped.
        ArchiveFormatError: It is no safetensors file.
    """
    from safetensors import SafetensorError

    try:
        return files.tensors(path)
    except SafetensorError as error:
        raise ArchiveFormatError(f"{path} is not a valid safetensors file: {error}.") from error
    except (MemoryError, RuntimeError) as error:
        raise ArchiveError(f"Cannot map {path}: {error}.") from error


def data_crc32(path: Path, n_header: int, files: Files) -> int:
    """The checksum of everything behind the header, from every byte."""
    crc32, position = 0, 0
    for block in files.blocks(path):
        crc32 = zlib.crc32(block[max(0, n_header - position) :], crc32)
        position += len(block)
    return crc32
