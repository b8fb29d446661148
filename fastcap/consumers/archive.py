"""Results on disk: what passes capture is written from slots to an archive, and committed by group.

Host workers write the values while the model runs, and a thread of its own commits groups. A group
that is full is committed while the next one is written; should that one fill up before, the run
waits, so there are never more than two.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.groups import Group
from fastcap.archive.layout import StreamSpec, dtype_name
from fastcap.archive.reader import Archive
from fastcap.archive.shards import Part
from fastcap.archive.writer import Commit, Writer
from fastcap.consumers.base import RowConsumer, check_batch, check_batch_size
from fastcap.consumers.batch_columns import BatchColumns, Values
from fastcap.engine import Pass
from fastcap.errors import ArgumentError, ResultError
from fastcap.spec import as_callable
from fastcap.transfer.base import Capture, Transfer

OnCommit = Callable[[Commit], object]
"""Called with every commit, in the thread that makes them: the next one waits for it."""


@dataclass(slots=True)
class _Batch:
    """A pass whose values are being written."""

    group: Group
    samples: Sequence[int]
    captures: list[tuple[Transfer, Capture]]
    parts: dict[str, Part]
    lengths: dict[str, Sequence[int]]

    @property
    def is_written(self) -> bool:
        return all(ticket.done() for _, capture in self.captures for ticket in capture.tickets)

    def settle(self) -> None:
        for transfer, capture in self.captures:
            transfer.settle(capture)
        self.group.add(self.samples, self.parts, self.lengths)


class ArchiveResult(RowConsumer):
    """Writes an archive; see `fastcap.Consumer`.

    Args:
        open_writer: Makes the writer, given the archive's streams and a thread for checksums;
            called after the first pass.
        site_names: In the order of the streams.
        beside: What of each batch is stored beside the sites.
        on_commit: Told of every commit.
        earlier: The archive that is continued; `None` where there is none yet.

    Attributes:
        n_committed: Samples of this run that are on disk.
        commit_secs: Seconds spent in commits.
        held_secs: Seconds that the run waited for them.
    """

    def __init__(
        self,
        open_writer: Callable[[tuple[StreamSpec, ...], Executor], Writer],
        site_names: Sequence[str],
        beside: BatchColumns,
        on_commit: OnCommit | None = None,
        earlier: Archive | None = None,
    ) -> None:
        super().__init__()
        as_callable("on_commit", on_commit, "that takes a Commit")
        self._open_writer = open_writer
        self._site_names = site_names
        self._beside = beside
        self._on_commit = on_commit
        self._callback_error: Exception | None = None
        self._earlier = earlier
        self._is_broken = False
        self._writer: Writer | None = None
        self._specs: dict[str, StreamSpec] = {}
        self._expected: tuple[range, Values, int] | None = None
        self._samples = range(0)
        self._values = Values()
        self._group: Group | None = None
        self._parts: dict[str, Part] = {}
        self._batches: deque[_Batch] = deque()
        self._full: Group | None = None
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="fastcap-commit")
        self._committing: Future[None] | None = None
        self._checksums = ThreadPoolExecutor(1, thread_name_prefix="fastcap-checksum")
        self.n_committed = 0
        self.commit_secs = 0.0
        self.held_secs = 0.0

    @property
    def written_bytes(self) -> int:
        """Bytes given to files so far, by this run."""
        return 0 if self._writer is None else self._writer.written_bytes

    @property
    def write_secs(self) -> float:
        """Seconds that host workers have spent writing."""
        return 0.0 if self._writer is None else self._writer.write_secs

    # Around one pass

    def expect(self, samples: range, batch: Any, n_batch: int) -> None:
        """The next pass is over `n_batch` samples, of which these ids are wanted."""
        check_batch(samples.start, batch, n_batch)
        values = self._beside.take(batch, len(samples), n_batch)
        self._expected = samples, values, n_batch

    def begin(self, n_samples: int) -> None:
        """A pass over `n_samples` is about to run."""
        assert self._expected is not None
        self._samples, self._values, n_expected = self._expected
        self._expected = None
        self._begin_batch(n_samples)
        self._abandon_pass()
        self._settle_written()
        if self._writer is not None:
            self._group = self._writer.group()
        check_batch_size(self._samples.start, n_samples, n_expected)

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Part | None]:
        """In the hook: the rows that are kept and, from the second pass on, where they go."""
        if not self._has_row_per_sample(site, value, lengths):
            return value, None
        n_kept = len(self._samples)
        value = value[: n_kept if lengths is None else sum(lengths[:n_kept])]
        spec = self._specs.get(site)
        if (earlier := self._parts.pop(site, None)) is not None:
            earlier.abandon()
        if self._group is None or spec is None or spec != self._spec(site, value, dtype, lengths):
            return value, None
        part = self._parts[site] = self._group.part(site, value.shape)
        return value, part

    def end(self, finished: Pass) -> None:
        """The pass is over: check it, and have what is not on its way yet written."""
        found = self._check(finished)
        if self._writer is None:
            self._open(found, self._values.specs)
        assert self._writer is not None
        group = self._group = self._group or self._writer.group()
        batch = self._start(group, finished)
        for name, (value, lengths) in self._values.tensors.items():
            part = batch.parts[name] = group.part(name, value.shape)
            part.copy_(value)
            batch.lengths[name] = lengths or ()
        group.reserve(self._samples, batch.parts)
        self._batches.append(batch)
        self._parts = {}
        self._group = None
        self._end_batch(len(self._samples))
        if self._writer.is_full:
            self._commit_group()

    def _start(self, group: Group, finished: Pass) -> _Batch:
        batch = _Batch(group, self._samples, [], {}, {})
        for site, (transfer, capture) in finished.captures.items():
            part = self._parts.get(site)
            if part is None:  # the first pass, whose sizes were not known in the hook
                part = group.part(site, capture.shape)
                transfer.deliver(capture, part)
            batch.captures.append((transfer, capture))
            batch.parts[site] = part
            if capture.lengths is not None:
                batch.lengths[site] = capture.lengths[: len(self._samples)]
        return batch

    def _abandon_pass(self) -> None:
        """What a pass that was not finished has sent on its way must not be written any more."""
        for part in self._parts.values():
            part.abandon()
        self._parts = {}

    # Checks

    def _spec(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> StreamSpec:
        name = dtype_name(dtype, site)
        return StreamSpec(site, "site", name, tuple(value.shape[1:]), lengths is not None)

    def _open(self, found: Mapping[str, StreamSpec], beside: Sequence[StreamSpec]) -> None:
        if not found:
            raise ResultError(
                f"None of {list(self._site_names)} captured anything in the first batch, so there "
                "is nothing to archive. The warnings say why."
            )
        self._specs = {name: found[name] for name in self._site_names if name in found}
        allow_open_files(len(self._specs) + len(beside))
        self._writer = self._open_writer((*self._specs.values(), *beside), self._checksums)

    def _check(self, finished: Pass) -> dict[str, StreamSpec]:
        self._refuse_misfits()
        found = {}
        for site, (_, capture) in finished.captures.items():
            if capture.error is not None:
                raise capture.error
            shape = tuple(capture.shape[1:])
            name = dtype_name(capture.dtype, site)
            found[site] = StreamSpec(site, "site", name, shape, capture.lengths is not None)
        if self._specs:
            self._compare(found)
        return found

    def _compare(self, found: Mapping[str, StreamSpec]) -> None:
        for site in self._specs.keys() ^ found.keys():
            what = "nothing" if site in self._specs else "something"
            raise ResultError(
                f"Site {site!r} captured {what} in batch {self._n_passes}, other than in the "
                "first: its rows would not match the samples. Leave this site out, or receive it "
                "with fastcap.stream()."
            )
        for site, spec in found.items():
            first = self._specs[site]
            if spec != first:
                raise ResultError(
                    f"Site {site!r} produced rows of shape {spec.shape} and dtype {spec.dtype} in "
                    f"batch {self._n_passes}, and {first.shape} and {first.dtype} before. Samples "
                    "of an archive need one shape and dtype: pad all to one length, select what "
                    "has one shape (positions='last', reduce='mean'), keep the real tokens of each "
                    "(positions='unpadded'), or ask for a dtype=."
                )

    # Commits

    def _settle_written(self) -> None:
        if self._committing is not None and self._committing.done():
            self._committing.result()
        if self._callback_error is not None:
            self._raise_callback_error()
        while self._batches and self._batches[0].is_written:
            self._settle_next()
        self._submit_full()

    def _settle_group(self, group: Group) -> None:
        while self._batches and self._batches[0].group is group:
            self._settle_next()

    def _settle_next(self) -> None:
        try:
            self._batches[0].settle()
        except BaseException:
            self._is_broken = True  # what comes behind it has no place any more
            raise
        self._batches.popleft()

    def _raise_callback_error(self) -> None:
        error, self._callback_error = self._callback_error, None
        self._on_commit = None
        if error is not None:
            raise error

    def _submit_full(self) -> None:
        """Commit the full group once all of it is written."""
        if self._full is None or (self._batches and self._batches[0].group is self._full):
            return
        group, self._full = self._full, None
        self._committing = self._committer.submit(self._commit, group)

    def _commit_group(self) -> None:
        """The group so far is full, or the last: what comes next goes to another."""
        assert self._writer is not None
        self._finish_commit()
        self._full = self._writer.take_group()
        self._submit_full()

    def _finish_commit(self) -> None:
        """Wait until nothing that was full is left to commit."""
        if self._full is not None:
            self._settle_group(self._full)
            self._submit_full()
        if self._committing is not None:
            committing, self._committing = self._committing, None
            started = time.monotonic()
            try:
                committing.result()
            finally:
                self.held_secs += time.monotonic() - started

    def _commit(self, group: Group) -> None:
        assert self._writer is not None
        started = time.monotonic()
        commit = self._writer.commit(group)
        self.commit_secs += time.monotonic() - started
        if commit is not None:
            self.n_committed += commit.n_samples
            if self._on_commit is not None and self._callback_error is None:
                try:
                    self._on_commit(commit)
                except Exception as error:  # noqa: BLE001 - raised where the run can end in order
                    self._callback_error = error

    def finish(self, n_total: int | None = None) -> None:
        """Commit every pass that is over.

        Args:
            n_total: Samples of the data, where it had not said before and has ended now.

        Raises:
            ArchiveWriteError: A file call failed; what was committed before is intact.
        """
        self._abandon_pass()
        if self._is_broken:
            self._abandon_batches()
        if self._writer is not None:
            self._commit_group()
            self._finish_commit()
        if n_total is not None:
            self._record_total(n_total)
        self._raise_callback_error()

    def _record_total(self, n_total: int) -> None:
        if self._writer is None and self._earlier is not None:
            self._writer = self._open_writer(self._earlier.meta.streams, self._checksums)
        if self._writer is not None:
            self._writer.record_total(n_total)

    def _abandon_batches(self) -> None:
        for batch in self._batches:
            for part in batch.parts.values():
                part.abandon()
        self._batches.clear()

    def close(self) -> None:
        """Stop, and remove what is not committed. Waits for a commit under way and its callback."""
        try:
            self._abandon_pass()
            self._abandon_batches()
            self._committer.shutdown(wait=True)
            self._checksums.shutdown(wait=True)
        finally:
            if self._writer is not None:
                self._writer.close()


OTHER_DESCRIPTORS = 256
"""Descriptors left for everything else in the process."""


def allow_open_files(n_streams: int) -> None:
    """Raise the process's limit to what it takes: a file per stream of up to three groups.

    Raises:
        ArgumentError: The limit that it may be raised to is too low.
    """
    needed = 3 * n_streams + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ArgumentError(
            f"{n_streams} sites and inputs need {needed} open files, and this process may have "
            f"{hard}. Raise the limit (ulimit -Hn {needed}), or extract fewer sites at a time."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
