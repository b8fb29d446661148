"""Reading an archive: sites and samples, as views of mapped shards."""

from __future__ import annotations

import difflib
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.files import Files, LocalFiles
from fastcap.archive.index import Run, SampleIndex
from fastcap.archive.layout import OFFSETS, StreamSpec
from fastcap.archive.mapping import check_shard, map_shard
from fastcap.archive.recovery import Damage, Leftover, clean, scan
from fastcap.archive.verification import Problem, find_problems
from fastcap.errors import (
    ArchiveError,
    ArchiveFormatError,
    ArgumentTypeError,
    MissingSampleError,
)
from fastcap.formatting import html_table
from fastcap.spec import as_path

OPEN_SHARDS = 64
"""How many shards stay mapped."""


def open_archive(folder: str | os.PathLike[str]) -> Archive:
    """Open an archive for reading: what is committed now, even while it is being written.

    Args:
        folder: The archive's directory.

    Returns:
        The archive. Files are memory-mapped on first access.

    Raises:
        ArchiveError: There is no archive at `path`, or it cannot be read.
        ArchiveFormatError: It has another format version, or was not written by fastcap.

    Examples:
        >>> import tempfile, torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> dataset = [{"input_ids": torch.tensor([i, i + 1, i + 2])} for i in range(5)]
        >>> folder = tempfile.mkdtemp() + "/acts"
        >>> _ = fastcap.extract(model, dataset, ["1"], folder, positions=-1)
        >>> archive = fastcap.open_archive(folder)
        >>> archive.sites, len(archive), archive["1"][3].shape, archive["1"][1:4].shape
        (['1'], 5, torch.Size([2]), torch.Size([3, 2]))
    """
    return Archive(as_path("folder", folder).absolute(), LocalFiles())


def reopen(
    path: Path, files: Files, on_aside: Callable[[Leftover], object] | None = None
) -> Archive:
    """Open an archive to go on with it, without what dead writers left unfinished.

    Only lines that are on disk are believed: what this says is there is not written again.

    Args:
        path: The archive's directory.
        files: The file system.
        on_aside: Told of every whole shard that no journal names, which is set aside.

    Raises:
        ArchiveError: There is no archive, or it cannot be read or written.
    """
    for leftover in clean(path, files):
        if leftover.is_whole and on_aside is not None:
            on_aside(leftover)
    return Archive(path, files, is_settled=True)


class Archive:
    """A directory of activations, read-only; see `open_archive`.

    `archive[stream]` is the `Samples` of a site, `batch:` or `label:` stream, `name in archive`
    says whether there is one, and `len(archive)` is the number of committed samples.

    It pickles as its path: a process that unpickles it opens the archive anew.

    Attributes:
        path: The directory.
        meta: What it holds and what it was made from.
        writers: All writers, live and dead, with what they committed and left behind.
    """

    def __init__(self, path: Path, files: Files, is_settled: bool = False) -> None:
        self.path = path
        self._files = files
        self._scan = scan(path, files, is_settled)
        self.meta = self._scan.meta
        self.writers = self._scan.writers
        self._index = SampleIndex(self._scan)
        self._shards: OrderedDict[Path, Mapping[str, Tensor]] = OrderedDict()

    @property
    def sites(self) -> list[str]:
        """The sites, in the order requested."""
        return [spec.name for spec in self.meta.streams if spec.kind == "site"]

    @property
    def streams(self) -> list[str]:
        """The names of all streams of a sample: sites, then `batch:` and `label:` streams."""
        return [spec.name for spec in self.meta.streams]

    @property
    def ids(self) -> list[tuple[int, int]]:
        """The committed samples, as ranges `(start, stop)` of ids."""
        return list(self._index.ranges)

    def __len__(self) -> int:
        """The number of committed samples."""
        return self._index.n_samples

    @property
    def n_samples(self) -> int | None:
        """The final number of samples; `None` until a writer has seen the end of the data."""
        totals = [w.journal.n_total for w in self.writers if w.journal.n_total is not None]
        return max(totals, default=self.meta.n_samples)

    def has(self, start: int, stop: int) -> bool:
        """Whether all samples from `start` up to `stop` are committed."""
        return self._index.has(start, stop)

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the data is committed."""
        return self.n_samples is not None and self.has(0, self.n_samples)

    @property
    def damages(self) -> list[Damage]:
        """Committed groups whose files are missing or truncated; their samples count as missing."""
        return [damage for writer in self.writers for damage in writer.damages]

    def __contains__(self, name: object) -> bool:
        return name in self.streams

    def __getitem__(self, name: str) -> Samples:
        """The values of one stream.

        Raises:
            ArchiveError: There is no such stream.
        """
        for spec in self.meta.streams:
            if spec.name == name:
                return Samples(self, spec)
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"archive[{name!r}]: an archive is read by stream and then by sample, as in "
                f"archive['layers.0'][{name!r}]. It has {self.streams[:20]}."
            )
        close = difflib.get_close_matches(name, self.streams)
        hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ArchiveError(f"{str(self.path)!r} has no {name!r}. {hint}It has {self.streams[:20]}.")

    def verify(self) -> list[Problem]:
        """Read every committed byte and check sizes, headers and checksums.

        Shards that are whole and named by no valid line of their journal are problems too, unless
        their writer still runs: the journal may have been damaged.

        Returns:
            The problems found; empty if there are none.
        """
        return list(find_problems(self._scan, self._files))

    # Shards

    def _shard(self, run: Run, stream: str) -> Mapping[str, Tensor]:
        record = next(file for file in run.group.files if stream in file.streams)
        path = run.writer.directory / record.name
        if path in self._shards:
            self._shards.move_to_end(path)
            return self._shards[path]
        try:
            check_shard(path, run.group, record, self.meta, self._files)
            shard = map_shard(path, run.group, record, self.meta, self._files)
            self._shards[path] = shard
        except ArchiveError:
            raise
        except OSError as error:
            raise ArchiveError(f"Cannot read {path}: {error.strerror or error}.") from error
        while len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard

    def _values(self, run: Run, spec: StreamSpec) -> Tensor | list[Any]:
        """The values of a run: rows as they are, or one value per sample where they are ragged."""
        shard = self._shard(run, spec.name)
        first, last = run.row, run.row + run.stop - run.start
        if not spec.is_ragged:
            return shard[spec.name][first:last]
        edges = shard[spec.name + OFFSETS][first : last + 1].tolist()
        rows = [shard[spec.name][a:b] for a, b in pairwise(edges)]
        return [_decode(row, spec, self.path) for row in rows] if spec.is_text else rows

    def __repr__(self) -> str:
        return f"Archive({str(self.path)!r}, samples: {self._count()}, sites: {self.sites})"

    def _repr_html_(self) -> str:
        rows = [spec.describe() for spec in self.meta.streams]
        title = f"Archive {str(self.path)!r}, samples: {self._count()}"
        return html_table(title, [("stream", "dtype", "shape of a sample"), *rows])

    def _count(self) -> str:
        return f"{len(self)}{'' if self.n_samples is None else f' of {self.n_samples}'}"

    def _ipython_key_completions_(self) -> list[str]:
        return self.streams

    def __reduce__(self) -> tuple[Any, ...]:
        # Its path alone: mapped shards would be copied whole into what is pickled.
        return open_archive, (self.path.absolute(),)


def _decode(row: Tensor, spec: StreamSpec, path: Path) -> str:
    try:
        return bytes(row.numpy()).decode()
    except UnicodeDecodeError as error:
        raise ArchiveFormatError(f"A text of {spec.name!r} in {path} is not UTF-8.") from error


class Samples:
    """One stream of an archive, by sample id.

    An int gives one sample. A slice gives a stack `(n, *shape)`, or a list if samples have
    different numbers of rows. Values are views of the memory-mapped file and meant to be read:
    writing to one never changes the file, but is visible in other views from this `Archive`, so
    `clone()` what you want to change. A slice that crosses groups is a copy.

    Attributes:
        spec: Name, dtype and shape.
    """

    def __init__(self, archive: Archive, spec: StreamSpec) -> None:
        self._archive = archive
        self.spec = spec

    @property
    def dtype(self) -> torch.dtype:
        """The dtype stored."""
        return self.spec.torch_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, or of one of its rows if samples differ in length."""
        return self.spec.shape

    def __len__(self) -> int:
        return len(self._archive)

    def __iter__(self) -> Iterator[Any]:
        """The committed samples, in the order of their ids."""
        for start, stop in self._archive.ids:
            for run in self._archive._index.runs(start, stop):
                yield from self._archive._values(run, self.spec)

    def __getitem__(self, key: int | slice) -> Any:
        """Values by sample id.

        Raises:
            MissingSampleError: A sample that is not in the archive.
        """
        if isinstance(key, slice):
            return self._slice(key)
        try:
            sample = self._absolute(operator.index(key))
        except TypeError:
            raise ArgumentTypeError(
                f"Samples are read by an int or a slice of their ids; got {key!r}."
            ) from None
        for run in self._archive._index.runs(sample, sample + 1):
            return self._archive._values(run, self.spec)[0]
        raise self._missing(sample)

    def _slice(self, key: slice) -> Any:
        end = self._end()
        start, stop, step = key.indices(end)
        if step != 1:
            return self._joined([self[i : i + 1] for i in range(start, stop, step)])
        stop = max(start, stop)
        found, reached = [], start
        for run in self._archive._index.runs(start, stop):
            if run.start != reached:
                break
            found.append(self._archive._values(run, self.spec))
            reached = run.stop
        if reached != stop:
            raise self._missing(reached)
        return self._joined(found)

    def _joined(self, found: list[Any]) -> Any:
        if self.spec.is_ragged:
            return [value for values in found for value in values]
        if not found:
            return torch.empty((0, *self.spec.shape), dtype=self.dtype)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _absolute(self, sample: int) -> int:
        end = self._end()
        if not -end <= sample < end:
            raise self._missing(sample)
        return sample + end if sample < 0 else sample

    def _end(self) -> int:
        """One more than the largest id there can be."""
        ids = self._archive._index.ranges
        return max(self._archive.n_samples or 0, ids[-1][1] if ids else 0)

    def _missing(self, sample: int) -> MissingSampleError:
        ranges = ", ".join(f"{start}-{stop - 1}" for start, stop in self._archive.ids[:5])
        return MissingSampleError(
            f"Sample {sample} is not in {str(self._archive.path)!r}; it has "
            f"{ranges or 'none'}{' and more' if len(self._archive.ids) > 5 else ''}. Run the same "
            "extraction again to add what is missing."
        )

    def __repr__(self) -> str:
        return f"Samples({self.spec.name!r}, n={len(self)}, shape={self.shape}, {self.dtype})"
