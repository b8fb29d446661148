"""What an earlier run left in a directory that is to be filled: may it be continued, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL, META, WRITER_NAME
from fastcap.archive.meta import check_config, read_meta
from fastcap.archive.reader import Archive, reopen
from fastcap.archive.recovery import Leftover
from fastcap.consumers.batch_columns import BatchColumns
from fastcap.errors import ArchiveConfigError, ArchiveError
from fastcap.fingerprint import hash_of
from fastcap.formatting import format_bytes
from fastcap.warn import warn


def open_earlier(
    root: Path, config: Mapping[str, Any], creator: Mapping[str, Any], rank: int
) -> Archive | None:
    """The archive that is there, to be continued; `None` where there is none yet.

    What dead writers left unfinished is removed. Whole shards that no journal names are set aside.

    Args:
        root: The directory.
        config: Of the run that wants to continue it.
        creator: Versions and machine of that run.
        rank: Which of its writers asks.

    Raises:
        ArchiveError: The directory holds something else, or cannot be read.
        ArchiveConfigError: The archive was made from something else.
    """
    files = LocalFiles()
    try:
        entries = files.entries(root)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(
            f"Cannot use {root} for an archive: {error.strerror or error}."
        ) from error
    names = [entry.name for entry in entries]
    if META not in names:
        others = [name for name in names if not WRITER_NAME.fullmatch(name)]
        if others:
            raise ArchiveError(
                f"{root} is not an archive, and it is not empty: it has {', '.join(others[:5])}. "
                "Choose a directory of its own."
            )
        return None
    meta = read_meta(root, files)
    check_config(config, hash_of(dict(config)), meta, root)
    _warn_of_creator(meta.creator, creator, root)
    aside: list[Leftover] = []
    archive = reopen(root, files, aside.append)
    _warn_of_aside(root, aside)
    _warn_of_others(archive, rank)
    return archive


def check_same_inputs(
    archive: Archive, columns: Sequence[str], samples: range, batch: Any, n_batch: int
) -> None:
    """A batch that is not run again must be the one that was: later ones are numbered after it.

    Args:
        archive: Where these samples are committed.
        columns: Keys of the batch that are stored there.
        samples: Their ids.
        batch: What the data gives for them now.
        n_batch: Samples in it.

    Raises:
        ArchiveConfigError: Its token ids, mask or columns are others.
    """
    now = BatchColumns(columns).take(batch, len(samples), n_batch)
    for name, (found, lengths) in now.tensors.items():
        if name not in archive:
            continue
        stored = archive[name][samples.start : samples.stop]
        rows = found if lengths is None else torch.split(found, list(lengths))
        for sample, row, before in zip(samples, rows, stored, strict=True):
            if not _is_same(row, before):
                raise ArchiveConfigError(
                    f"{archive.path} holds another {name!r} for sample {sample} than the data "
                    "gives now, so the samples that are missing cannot be told: the data has "
                    "changed, or comes in another order. Give the same samples in the same order "
                    "(seed, shards, number of workers), or choose another directory."
                )


def _is_same(row: Tensor, before: Tensor | str) -> bool:
    if isinstance(before, str):
        return bytes(row.numpy()) == before.encode()
    if (row.shape, row.dtype) != (before.shape, before.dtype):
        return False
    mine, theirs = (each.reshape(-1).view(torch.uint8) for each in (row, before))
    return torch.equal(mine, theirs)  # as bytes: a label may be NaN


def _warn_of_creator(there: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> None:
    changed = [
        f"{key} {there.get(key)} then and {now.get(key)} now"
        for key in now
        if key != "fastcap" and there.get(key) != now.get(key)
    ]
    if changed:
        warn(
            f"{root} was begun with another set-up: {', '.join(changed)}. Values that are added "
            "may be rounded differently."
        )


def _warn_of_aside(root: Path, aside: Sequence[Leftover]) -> None:
    if aside:
        names = ", ".join(str(each.path.relative_to(root)) for each in aside[:5])
        more = f" and {len(aside) - 5} more" if len(aside) > 5 else ""
        warn(
            f"{root} has shards that are whole and that no valid line of their journal names: "
            f"{names}{more}. Either their process was killed just before it committed them, or the "
            "journal was damaged since. They are kept, with .orphan behind their names, and "
            "their samples run again where they are missing. To have them back instead, stop this "
            f"and run: fastcap repair {root}"
        )


def _warn_of_others(archive: Archive, rank: int) -> None:
    for writer in archive.writers:
        if writer.journal.is_damaged:
            warn(f"{writer.directory / JOURNAL}: {writer.journal.describe_damage()}.")
        info = writer.journal.info
        if writer.is_live and info is not None and info.rank == rank:
            warn(
                f"Process {info.pid} is writing to {archive.path} as rank {rank} too. Nothing is "
                "lost by that, but both do the same work."
            )
        if writer.is_live is None and writer.leftovers:
            n_bytes = sum(leftover.n_bytes for leftover in writer.leftovers)
            warn(
                f"{writer.directory} has {format_bytes(n_bytes)} that are not committed, and its "
                "writer ran on another machine or before a restart, so it cannot be told whether "
                "it is alive. If it is not, its files ending in .tmp can be removed."
                + (
                    f" To adopt what is whole: fastcap repair {archive.path}"
                    * bool(writer.unlisted)
                )
            )
