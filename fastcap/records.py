"""What callers receive: records, the records of one pass, and statistics.

The six states of a capture, in order: captured (the hook has fired) → staged (packed into staging)
→ copying (its chunk is on the copy stream) → landed (its bytes are in a slot) → delivered (they are
in memory that the user owns, or lent) → free (nothing of fastcap's holds it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from fastcap.formatting import html_table, html_text


class HasShape(Protocol):
    """A tensor, or what is known of one before it has landed."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def dtype(self) -> torch.dtype: ...


def describe_tensor(value: HasShape) -> tuple[str, str]:
    """Shape and dtype for people: `("(2, 3)", "float32")`."""
    return str(tuple(value.shape)), str(value.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Record:
    """One delivered capture.

    Attributes:
        site: The site's name, as requested.
        tensor: The value: on the CPU, contiguous, detached, owned by the receiver.
        pass_index: The pass it came from, from 0.
        call_index: The call of the module within the pass, from 0 (the last call is the one kept,
            unless all are requested).
        samples: The samples of the rows, numbered over the whole iteration.
        lengths: With `positions="unpadded"`, the number of rows of each sample:
            `tensor.split(lengths)` is one tensor per sample. Otherwise `None`.
    """

    site: str
    tensor: Tensor
    pass_index: int
    call_index: int
    samples: range
    lengths: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        shape, dtype = describe_tensor(self.tensor)
        return (
            f"Record({self.site!r}, shape {shape}, {dtype}, pass_index={self.pass_index}, "
            f"call_index={self.call_index}, samples={self.samples})"
        )

    def _repr_html_(self) -> str:
        return html_text(repr(self))


class BatchRecords(Mapping[str, Tensor]):
    """The records of one pass: a mapping from site to tensor, in the order of the sites.

    Attributes:
        batch: The batch as it came from the caller's iterable; a copy of it where the iterable has
            filled its memory again since.
        pass_index: The index of the pass, from 0.
        samples: The samples of this batch, numbered over the whole iteration.
        records: The same tensors as `Record` objects; with `calls="all"`, earlier calls too.
    """

    def __init__(
        self, batch: object, pass_index: int, samples: range, records: Iterable[Record]
    ) -> None:
        self.batch = batch
        self.pass_index = pass_index
        self.samples = samples
        self.records = tuple(records)
        self._tensors = {record.site: record.tensor for record in self.records}
        self._lengths = {record.site: record.lengths for record in self.records}

    def __getitem__(self, site: str) -> Tensor:
        return self._tensors[site]

    def lengths(self, site: str) -> tuple[int, ...] | None:
        """Rows of each sample in a ragged value (`positions="unpadded"`); otherwise `None`.

        `records[site].split(records.lengths(site))` is one tensor per sample.
        """
        return self._lengths[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def calls(self, site: str) -> list[Tensor]:
        """The values of a site's calls, in order: one tensor unless `calls="all"`."""
        return [record.tensor for record in self.records if record.site == site]

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site!r}: {tuple(t.shape)}" for site, t in self._tensors.items())
        return f"BatchRecords(pass_index={self.pass_index}, {{{shapes}}})"

    def _repr_html_(self) -> str:
        rows = [(site, *describe_tensor(tensor)) for site, tensor in self._tensors.items()]
        title = f"BatchRecords(pass_index={self.pass_index}, samples={self.samples})"
        return html_table(title, [("site", "shape", "dtype"), *rows])

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What capturing has cost so far, counted at the device interface.

    Bytes are what actually moved, after selection and narrowing. On a CPU model, `copies` counts
    the hooks' own copies, since there is no link.
    """

    captures: int = 0
    """Values that hooks captured."""
    captured_bytes: int = 0
    """Bytes of those values, after selection and in the dtype that crosses the link."""
    copies: int = 0
    """Copies from the device into host memory."""
    copied_bytes: int = 0
    """Bytes of those copies."""
    superseded_bytes: int = 0
    """Bytes captured but never read: a later call of the same site replaced them."""
    waits: int = 0
    """Times the host waited for a copy, a host worker or a free slot."""
    waited_secs: float = 0.0
    """Seconds of those waits, on the device's clock."""
    joined_secs: float = 0.0
    """The part of `waited_secs` spent on host workers rather than copies."""
    delivery_secs: float = 0.0
    """Seconds host workers spent moving bytes, summed over workers."""
    stream_waits: int = 0
    """Times a compute stream waited (without the host) before staging was rewritten."""
    spills: int = 0
    """Values moved out of a slot to make room for the next copy."""
    spilled_bytes: int = 0
    """Bytes of those values."""
    lends: int = 0
    """Records lent out of a slot instead of copied (`zero_copy=True`)."""
    device_allocations: int = 0
    """Staging buffers allocated on the device."""
    staging_bytes: int = 0
    """Bytes of staging currently allocated."""
    host_allocations: int = 0
    """Slots allocated (and pinned, where that applies)."""
    pinned_bytes: int = 0
    """Bytes of slots currently allocated."""
    mask_reads: int = 0
    """Attention masks that existed only on the accelerator; the host waited once for each."""
    events: int = 0
    """Events created."""
    memory: tuple[str, ...] = ()
    """Staging and slots of each accelerator while allocated, and what determined their sizes."""

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(Statistics))
        )
