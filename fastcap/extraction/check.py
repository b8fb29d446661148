"""Whether a run still gives the values that an archive holds: its first batch, run once more.

A fingerprint sees what it knows to look at. Values see everything: a weight, a hook or a global
that changed gives other ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fastcap.archive.reader import Archive
from fastcap.consumers.batch_columns import BatchColumns
from fastcap.consumers.check import ValueCheck
from fastcap.consumers.comparison import Difference
from fastcap.errors import ArchiveConfigError, ArgumentError
from fastcap.extraction.batches import Batches, Grid, Share
from fastcap.model.forward import unchanged
from fastcap.request import RunRequest
from fastcap.streaming import Stream
from fastcap.warn import warn

CHECKS = ("values", "fingerprint")
"""What `check=` knows."""

DECISIVE = ("torch", "machine", "device")
"""What of a creator decides whether bits can be expected to be the same."""

MOST_LINES = 5


def as_check(check: str) -> str:
    """The argument.

    Raises:
        ArgumentError: It is another word.
    """
    if check not in CHECKS:
        raise ArgumentError(
            f"check={check!r}: 'values' runs one batch of an archive that is there again and "
            "compares it, and 'fingerprint' leaves that out."
        )
    return check


class EarlierValues:
    """Compares an archive with what the run gives now.

    Args:
        archive: The one that is there.
        request: What is captured.
        columns: Keys of the batch that are stored.
        batches: The first of them is compared.
    """

    def __init__(
        self, archive: Archive, request: RunRequest, columns: Sequence[str], batches: Batches
    ) -> None:
        self._archive = archive
        self._request = request
        self._columns = columns
        self._batches = batches

    def compare(self, creator: Mapping[str, Any]) -> dict[str, Any] | None:
        """Run the batch and compare.

        The model's buffers and random numbers are afterwards as they were. A second pass is made
        only before values are refused: it tells whether the model gives the same bits twice.

        Args:
            creator: Versions and machine of this run.

        Returns:
            What was found, to be recorded, as JSON; `None` where nothing is committed.

        Raises:
            ArchiveConfigError: They differ by more than rounding can.
        """
        if not len(self._archive):
            return None
        with unchanged(self._request.model, self._request.call.device):
            check = self._run()
            refused = check.differences
            if not _is_alike(creator, _creator_of(self._archive, check.samples.start)):
                refused = [each for each in refused if not each.is_rounding]
            is_steady = True
            if refused and check.n_done and self._run().checksums != check.checksums:
                is_steady = False
                refused = [each for each in refused if not each.is_rounding]
        if refused:
            raise ArchiveConfigError(
                _refusal(self._archive.path, check.samples, refused, is_steady)
            )
        if not is_steady:
            warn(
                "The model does not give the same bits twice. Those that it gives now agree with "
                f"{self._archive.path} within rounding: {_line(check.differences[0])}."
            )
        return _record(check)

    def _run(self) -> ValueCheck:
        """One pass, unless the batch itself is another already."""
        check = ValueCheck(self._archive, BatchColumns(self._columns), _dtypes(self._request))
        for batch in islice(self._batches.run(check), 1):
            if not check.differences:
                for _ in Stream([batch], self._request, 0, check, self._batches.count):
                    pass
            return check
        check.differences.append(Difference("the data", "it ends before these samples now"))
        return check


def first_batch(archive: Archive, grid: Grid, share: Share) -> int:
    """The number of the first committed batch of a share; of any, if it has none. 0 for nothing."""
    size = grid.batch_size
    ranges = [range(-(-start // size), -(-stop // size)) for start, stop in archive.ids]
    mine = (number for numbers in ranges for number in numbers if share.has(number))
    return next(mine, next((numbers.start for numbers in ranges if numbers), 0))


def _dtypes(request: RunRequest) -> list[torch.dtype]:
    """What the model computes in, as far as that can be seen."""
    found = {each.dtype for each in request.model.parameters() if each.is_floating_point()}
    kind = request.call.device.type
    if torch.is_autocast_enabled(kind):
        found.add(torch.get_autocast_dtype(kind))
    return list(found)


def _is_alike(creator: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two set-ups give the same bits."""
    return all(creator.get(key) == other.get(key) for key in DECISIVE)


def _creator_of(archive: Archive, sample: int) -> Mapping[str, Any]:
    """The set-up that a stored sample was made with."""
    for writer in archive.writers:
        for group in writer.groups:
            if any(start <= sample < stop for start, stop in group.samples):
                info = writer.journal.info
                return (
                    archive.meta.creator if info is None else info.creator or archive.meta.creator
                )
    return archive.meta.creator


def _record(check: ValueCheck) -> dict[str, Any]:
    rounded = {d.name: {"found": d.what, "tolerance": d.tolerance} for d in check.differences}
    return {"samples": [check.samples.start, check.samples.stop], "rounded": rounded}


def _line(difference: Difference) -> str:
    return f"{difference.name!r}: {difference.what}"


def _refusal(path: Path, samples: range, refused: Sequence[Difference], is_steady: bool) -> str:
    lines = [f"  {_line(each)}" for each in refused[:MOST_LINES]]
    if len(refused) > MOST_LINES:
        lines.append(f"  {len(refused) - MOST_LINES} more differ")
    if not is_steady:
        why = (
            "The model gives other values each time it is run: it draws random numbers or keeps "
            "something from pass to pass."
        )
    elif all(each.is_rounding for each in refused):
        why = (
            "The difference is as small as rounding, and the machine, torch and the number of "
            "threads are the same: another kernel, precision or layout in memory may be in use."
        )
    else:
        why = (
            "The fingerprint is the same, so this is something that it does not see: a weight, "
            "attribute or hook of the model, what a function reads, or samples of the data. If "
            "nothing was changed, look for damage: fastcap inspect --verify."
        )
    which = f" of samples {samples.start} to {samples.stop - 1}" if samples else ""
    return (
        f"{path} holds other values{which} than this run gives:\n"
        + "\n".join(lines)
        + f"\n{why}\nRun the same as then, choose another directory, or replace it with "
        "overwrite=True. check='fingerprint' goes on without comparing values."
    )
