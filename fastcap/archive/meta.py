"""`meta.json`: what an archive holds and what it was made from. Written once, never changed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fastcap.archive.files import Files
from fastcap.archive.layout import (
    FORMAT,
    HEADER_LIMIT,
    MANY,
    META,
    OFFSETS,
    SAMPLES,
    StreamSpec,
    header,
    parse_stream,
    shard_metadata,
    shard_tensors,
    stream_json,
)
from fastcap.archive.parsing import check_depth, parse_object, take, take_count
from fastcap.errors import ArchiveConfigError, ArchiveError, ArchiveFormatError
from fastcap.fingerprint import differences, hash_of

META_LIMIT = 64 << 20
_NO_CRC = b'"crc32": "00000000"'


@dataclass(frozen=True, slots=True)
class Meta:
    """What every writer and reader of one archive agrees on.

    Attributes:
        archive: An id, so that a writer's directory cannot be taken for another run's; begins the
            `config_hash`, so that writers which begin at once agree on it.
        streams: What every sample has, in the order of the shards.
        n_samples: Samples of the data; `None` where it does not say.
        batch_size: Batch `b` holds the samples from `b * batch_size` on.
        config: What values depend on, as JSON; a run with another `config_hash` is refused.
        config_hash: Of `config`.
        creator: Versions and machine, for people.
    """

    archive: str
    streams: tuple[StreamSpec, ...]
    n_samples: int | None
    batch_size: int
    config: Mapping[str, Any]
    config_hash: str
    creator: Mapping[str, Any]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.streams]
        taken = {SAMPLES, *(name + OFFSETS for name in names), "__metadata__"}
        for name in names:
            if name in taken:
                raise ArchiveError(
                    f"{name!r} cannot be the name of a stream: shards use it. Rename the module or "
                    "the label."
                )
            taken.add(name)

    def stream(self, name: str) -> StreamSpec:
        return next(spec for spec in self.streams if spec.name == name)

    def encode(self) -> bytes:
        found = {
            "format": FORMAT,
            "crc32": "00000000",
            "archive": self.archive,
            "n_samples": self.n_samples,
            "batch_size": self.batch_size,
            "streams": [stream_json(spec) for spec in self.streams],
            "config_hash": self.config_hash,
            "config": self.config,
            "creator": self.creator,
        }
        try:
            content = json.dumps(found, indent=1, allow_nan=False).encode() + b"\n"
        except (ValueError, RecursionError) as error:
            raise ArchiveError(f"The description of this run is not valid JSON: {error}.") from None
        if len(content) > META_LIMIT:
            raise ArchiveError(
                f"The description of this run takes {len(content)} bytes, and {META} holds at most "
                f"{META_LIMIT}. Give the dataset a short fingerprint() of its own, or ask for "
                "fewer sites."
            )
        return content.replace(_NO_CRC, _crc_field(zlib.crc32(content)), 1)


def new_meta(
    streams: Iterable[StreamSpec],
    n_samples: int | None,
    batch_size: int,
    config: Mapping[str, Any],
    creator: Mapping[str, Any],
) -> Meta:
    """The meta of an archive that does not exist yet; see `Meta`."""
    config_hash = hash_of(dict(config))
    return Meta(
        config_hash[:32], tuple(streams), n_samples, batch_size, config, config_hash, creator
    )


def check_readable(meta: Meta) -> None:
    """Whether readers take the files of such an archive, before anything of it is written.

    Raises:
        ArchiveError: They refuse its `meta.json`, or the header of a shard that holds all streams.
    """
    content = meta.encode()
    try:
        is_same = parse_meta(content, META).encode() == content
    except ArchiveFormatError as error:
        raise ArchiveError(f"No archive can hold this: {error}") from None
    if not is_same:
        raise ArchiveError(f"No archive can hold this: {META} would be read as something else.")
    rows = {spec.name: MANY for spec in meta.streams}
    tensors = shard_tensors(meta.streams, MANY, rows)
    n_bytes = len(header(tensors, shard_metadata(meta.archive, MANY)))
    if n_bytes > HEADER_LIMIT:
        longest = max((spec.name for spec in meta.streams), key=len)
        raise ArchiveError(
            f"The names of {len(meta.streams)} streams make a shard's header of {n_bytes} bytes, "
            f"and readers take at most {HEADER_LIMIT}. The longest is {longest[:80]!r}, of "
            f"{len(longest)} characters. Give shorter names, or extract fewer sites at a time."
        )


def read_meta(root: Path, files: Files) -> Meta:
    """The meta of an archive.

    Raises:
        ArchiveError: There is no archive, or it cannot be read.
        ArchiveFormatError: What is there is not of this version.
    """
    path = root / META
    try:
        content = files.read(path, META_LIMIT + 1)
    except FileNotFoundError:
        raise ArchiveError(f"{root} is not an archive: it has no {META}.") from None
    except OSError as error:
        raise ArchiveError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > META_LIMIT:
        raise ArchiveFormatError(f"{path} is larger than any that fastcap writes.")
    return parse_meta(content, str(path))


def check_same(asked: Meta, there: Meta, root: Path) -> None:
    """Whether what is asked may be added to what is there.

    Raises:
        ArchiveConfigError: Another configuration, or other streams.
    """
    check_config(asked.config, asked.config_hash, there, root)
    for ours, theirs in zip_longest(asked.streams, there.streams):
        if ours != theirs:
            raise ArchiveConfigError(
                f"{root} was made by the same configuration, and its values differ in kind now: "
                f"{ours} here, {theirs} there. Was the model or the data changed?"
            )


def check_config(config: Mapping[str, Any], config_hash: str, there: Meta, root: Path) -> None:
    """Whether samples of this configuration may be added to what is there.

    Raises:
        ArchiveConfigError: It differs; the message says in what.
    """
    if config_hash != there.config_hash:
        lines = differences(config, there.config)
        raise ArchiveConfigError(
            f"{root} holds another run, whose samples must not be mixed with these:\n"
            + "\n".join(f"  {line}" for line in lines)
            + "\nAsk for the same as then, choose another directory, or replace it with "
            "overwrite=True."
        )


def parse_meta(content: bytes, where: str) -> Meta:
    """What `Meta.encode` wrote.

    Raises:
        ArchiveFormatError: Something else.
    """
    found = parse_object(content, where)
    version = take_count(found, "format", where)
    if version != FORMAT:
        raise ArchiveFormatError(
            f"{where}: an archive of format {version}, and this fastcap reads format {FORMAT}. "
            "Install a newer fastcap."
        )
    check_depth(found, where)
    crc32 = take(found, "crc32", str, where)
    zeroed = content.replace(f'"crc32": "{crc32}"'.encode(), _NO_CRC, 1)
    if f"{zlib.crc32(zeroed):08x}" != crc32:
        raise ArchiveFormatError(
            f"{where} is not as it was written: its checksum differs. Restore it from a copy, or "
            "extract again to another directory."
        )
    n_samples = None if found.get("n_samples") is None else take_count(found, "n_samples", where)
    batch_size = take_count(found, "batch_size", where)
    if batch_size == 0:
        raise ArchiveFormatError(f"{where}: 'batch_size' is 0.")
    try:
        return Meta(
            take(found, "archive", str, where),
            _parse_streams(take(found, "streams", list, where), where),
            n_samples,
            batch_size,
            take(found, "config", dict, where),
            take(found, "config_hash", str, where),
            take(found, "creator", dict, where),
        )
    except ArchiveFormatError:
        raise
    except ArchiveError as error:
        raise ArchiveFormatError(f"{where}: {error}") from None


def _crc_field(crc32: int) -> bytes:
    return b'"crc32": "%08x"' % crc32


def _parse_streams(found: Sequence[Any], where: str) -> tuple[StreamSpec, ...]:
    if not all(isinstance(each, dict) for each in found):
        raise ArchiveFormatError(f"{where}: a stream is described by an object.")
    return tuple(parse_stream(each, where) for each in found)
