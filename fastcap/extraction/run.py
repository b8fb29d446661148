"""`extract`: from a dataset to an archive on disk, as much as there is, and again after a crash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import StreamSpec
from fastcap.archive.limits import GROUP_SECS, GroupLimits
from fastcap.archive.meta import check_readable, new_meta
from fastcap.archive.reader import Archive
from fastcap.archive.writer import Writer
from fastcap.batching.source import make_source
from fastcap.consumers.archive import ArchiveResult, OnCommit
from fastcap.consumers.batch_columns import BatchColumns
from fastcap.errors import ArchiveError, ArgumentError
from fastcap.extraction.batches import Batches, Grid, Share, make_grid, make_share
from fastcap.extraction.check import EarlierValues, as_check, first_batch
from fastcap.extraction.clearing import replacing
from fastcap.extraction.resume import open_earlier
from fastcap.extraction.signals import Interruption
from fastcap.fingerprint import describe_creator, describe_run, device_name
from fastcap.model.early_stop import StopAfter
from fastcap.model.forward import Forward, evaluation_mode
from fastcap.model.sites import Sites
from fastcap.progress import Progress, Report, open_report
from fastcap.rates import Counters
from fastcap.request import RunRequest, request_run
from fastcap.selection.per_sample import MaskOfBatch
from fastcap.spec import BATCH_SIZE, Positions, Reduce, as_count, as_path
from fastcap.streaming import Stream


def extract(
    model: nn.Module,
    dataset: Any,
    sites: Sites,
    folder: str | os.PathLike[str],
    *,
    device: torch.device | str | int | None = None,
    batch_size: int = BATCH_SIZE,
    max_samples: int | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    columns: Sequence[str] = (),
    stop_after_last_site: StopAfter = False,
    check: str = "values",
    overwrite: bool = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    progress: Progress = False,
    on_commit: OnCommit | None = None,
    rank: int = 0,
    world_size: int = 1,
    group_bytes: int | None = None,
    group_secs: float = GROUP_SECS,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
) -> Archive:
    """Run a dataset through the model and write the values of its sites to an archive on disk.

    Memory use is constant, whatever the number of samples. Samples are committed in groups, which
    survive a crash, a kill or a full disk. Re-running the call resumes it: the original batches
    that are not committed yet run again, and a different configuration is refused, as are values
    that come out differently. Ctrl-C, SIGTERM and SIGUSR1 end the run after the current pass and
    commit what is complete, which takes as long as writing the slots and syncing at most two
    groups.

    Args:
        model: Any module, on `device`.
        dataset: A map-style or iterable dataset, or a list, of dicts with `"input_ids"`, in a
            stable order; a dict of columns, whose rows are the samples; or a `DataLoader` that
            does not shuffle, whose `dataset`, `batch_size`, workers and `collate_fn` are used.
        sites: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or module
            objects of the model; see `docs/concepts.md`.
        folder: The archive's directory; created if missing, resumed if it exists.
        device: Where batches are moved; by default the device of the model's parameters.
        batch_size: Samples per pass.
        max_samples: Stop after this many samples. The last batch runs whole and is cropped.
        positions: As for `fastcap.stream`. With `"unpadded"`, each sample has as many rows as
            real tokens.
        reduce: As for `fastcap.stream`.
        dtype: The dtype to store.
        seq_dim: The dimension that `positions` index, counted with samples first; 1 by default.
        batch_dim: The dimension of a site's value that counts samples, such as 1 for a
            sequence-first `(sequence, batch, ...)`. It is moved to the front before anything else.
            If another dimension is as long as the batch, the first batch runs once more with one
            sample fewer, to tell them apart.
        mask: A callable that takes the batch and returns which tokens are real; see
            `fastcap.stream`.
        model_inputs: Keys of the batch passed to the model by name besides `input_ids`; of a tuple
            of several tensors, the name of each.
        forward: `forward(model, batch)` replaces the model call; batch tensors are on `device`.
        columns: Keys of the batch to store with the activations as `label:<key>`: a number, a row
            of numbers, or a text per sample.
        stop_after_last_site: Whether to end passes once every site has fired; see `fastcap.stream`.
        check: What is looked at before an archive that is there is continued or returned.
            `"values"` compares fingerprints, and then runs its first committed batch again and
            compares values; `"fingerprint"` leaves that pass out. See `docs/archive.md`.
        overwrite: Whether an archive of another run that is in `folder` is removed, and this run
            begun in its place. One of this run is continued all the same. Without it, what
            another run left is replaced only if it holds nothing. For one process.
        num_workers: Data-loading processes; at most one for an iterable dataset, unless its
            `has_fixed_order` is true.
        collate_fn: Makes a batch of samples, as for `torch.utils.data.DataLoader`.
        progress: `True` for a progress bar, or a callable that takes the samples done and expected.
        on_commit: Called with each `fastcap.archive.writer.Commit`: the ids, paths and bytes
            now on disk, for example to upload them. Runs in another thread; the next commit waits
            for it, and an error it raises ends the run.
        rank: The index of this process. It runs the batches whose number is `rank` modulo
            `world_size`; all processes write to one archive.
        world_size: The number of processes that share the batches.
        group_bytes: Commit a group after this many bytes; 1 GiB, or 32 MiB per stream if more.
        group_secs: Commit it after this many seconds in any case.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.

    Returns:
        The archive, open for reading.

    Raises:
        SiteNotFoundError: A site does not name a module of the model.
        ArgumentError, ArgumentTypeError: An argument out of range or of the wrong type.
        ArchiveConfigError: `folder` holds a run of another model, other data or another selection,
            or values that this run does not give.
        ArchiveWriteError: A file operation failed (a full disk, say); what was committed is intact.
        ResultError: A site whose dimension `batch_dim` is not the batch, or whose shape or dtype
            changes.
        KeyboardInterrupt, SystemExit: A signal arrived; what was complete is committed.
        Exception: Whatever the model or dataset raises, unchanged, after committing complete
            samples.

    Examples:
        >>> import tempfile, torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> dataset = [{"input_ids": torch.tensor([i, i + 1, i + 2])} for i in range(5)]
        >>> archive = fastcap.extract(model, dataset, ["1"], tempfile.mkdtemp(), batch_size=2)
        >>> archive["1"][4].shape
        torch.Size([3, 2])
    """
    root = as_path("folder", folder).absolute()  # a dataset or model may change the directory
    request = request_run(
        model,
        sites,
        device=device,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        seq_dim=seq_dim,
        batch_dim=batch_dim,
        mask=mask,
        model_inputs=model_inputs,
        forward=forward,
        stop_after_last_site=stop_after_last_site,
        staging_bytes=staging_bytes,
        pinned_bytes=pinned_bytes,
    )
    how, share = as_check(check), make_share(rank, world_size)
    groups = _make_groups(group_bytes, group_secs)
    source = make_source(dataset, batch_size, num_workers, collate_fn)
    grid, beside = make_grid(source, max_samples), BatchColumns(columns)
    config = describe_run(
        model,
        source.dataset,
        request.site_names,
        request.selection,
        batch_size=grid.batch_size,
        n_samples=grid.n_samples,
        model_inputs=model_inputs,
        forward=forward,
        mask=mask,
        collate_fn=source.collate_fn,
        columns=columns,
    )
    config |= grid.describe()
    creator = describe_creator(device_name(request.call.device))

    def look() -> tuple[Archive | None, Batches, dict[str, Any] | None]:
        there = open_earlier(root, config, creator, share.rank)
        only_read = there is not None and there.is_complete
        batches = Batches(source, grid, share, None if only_read else there, columns)
        if there is None or how != "values":
            return there, batches, None
        only = batches.only(first_batch(there, grid, share))
        return there, batches, EarlierValues(there, request, columns, only).compare(creator)

    there, batches, checked = replacing(root, look, overwrite, is_alone=share.is_whole)
    if there is not None and there.is_complete:
        return there
    check_readable(new_meta(_named(request.site_names, columns), None, 1, config, creator))

    def open_writer(streams: tuple[StreamSpec, ...], checksums: Executor) -> Writer:
        meta = new_meta(streams, grid.n_samples, grid.batch_size, config, creator)
        return Writer(
            root, meta, rank=share.rank, limits=groups, checksums=checksums, check=checked
        )

    result = ArchiveResult(open_writer, request.site_names, beside, on_commit, there)
    interruption = _run(request, batches, result, _report(progress, grid, share, there))
    return _end(root, there is not None or result.n_committed > 0, batches, interruption)


def _report(
    progress: Progress, grid: Grid, share: Share, there: Archive | None
) -> AbstractContextManager[Report]:
    n_expected = grid.n_samples if share.is_whole else None
    return open_report(progress, n_expected, len(there or ()))


def _end(root: Path, has_begun: bool, batches: Batches, interruption: Interruption) -> Archive:
    """The archive, if all batches of this process are in it: so its files say, and no counter.

    Raises:
        ArchiveError: Somebody else has changed its files.
        KeyboardInterrupt, SystemExit: A signal has ended the run before its end.
    """
    archive = Archive(root, LocalFiles()) if has_begun else None
    n_saved = 0 if archive is None else len(archive)
    if n_saved != batches.n_samples:
        interruption.end(root, n_saved, batches.n_samples)
    batches.check_any()
    assert archive is not None, "what has run is committed"
    for wanted in batches.missing(archive):
        raise ArchiveError(
            f"{archive.path} has lost samples {wanted.start} to {wanted.stop - 1}, which were "
            "committed: its files were changed while this ran, such as a journal that was removed "
            "or cut. To have back what is whole: fastcap repair. To extract what is missing: run "
            "the same again."
        )
    return archive


def _named(sites: Iterable[str], columns: Iterable[str]) -> Iterator[StreamSpec]:
    """Streams of which only the names are known, since no pass has run."""
    for name in sites:
        yield StreamSpec(name, "site", "U8", ())
    for key in dict.fromkeys(columns):
        yield StreamSpec(f"label:{key}", "label", "U8", ())


def _run(
    request: RunRequest,
    batches: Batches,
    result: ArchiveResult,
    opened: AbstractContextManager[Report],
) -> Interruption:
    """Run the batches, and commit what they give."""
    with (
        Interruption() as interruption,
        contextlib.closing(result),
        opened as report,
        evaluation_mode(request.model),
    ):
        check = request.batch_dimension()
        run = Stream(batches.run(result), request, 0, result, batches.count, check)
        advance = partial(_advance, report, run, batches, result)
        _drive(run, result, interruption, advance)
        result.finish(batches.n_total)
        advance()
    return interruption


def _drive(
    run: Stream, result: ArchiveResult, interruption: Interruption, advance: Callable[[], object]
) -> None:
    """Run the passes. What is complete is committed on an error too, as long as files can be
    written and nobody insists on stopping at once.
    """
    try:
        with run:
            for _ in run:
                advance()
                if interruption.is_asked:
                    break
    except (KeyboardInterrupt, ArchiveError):
        raise
    except BaseException as error:
        try:
            result.finish()
        except Exception as second:  # noqa: BLE001 - the first error is the one to tell
            error.add_note(f"Committing what was complete failed too: {second}")
        raise


def _advance(report: Report, run: Stream, batches: Batches, result: ArchiveResult) -> None:
    counted = run.statistics()
    report(
        Counters(
            n_samples=result.n_done,
            written_bytes=result.written_bytes,
            copied_bytes=counted.copied_bytes,
            waited_secs=counted.waited_secs,
            joined_secs=counted.joined_secs,
            delivery_secs=counted.delivery_secs,
            loading_secs=batches.loading_secs,
            committing_secs=result.held_secs,
            file_secs=result.write_secs + result.commit_secs,
        )
    )


def _make_groups(group_bytes: int | None, group_secs: float) -> GroupLimits:
    if not isinstance(group_secs, int | float) or not group_secs > 0:
        raise ArgumentError(f"group_secs must be a number of seconds above 0; got {group_secs!r}.")
    n_bytes = None if group_bytes is None else as_count("group_bytes", group_bytes)
    return GroupLimits(n_bytes, secs=group_secs)
