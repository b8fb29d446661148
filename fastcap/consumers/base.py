"""Who receives what passes capture: the contract, and the checks that consumers of rows share.

A consumer is a class with one method that it must have, `end`. See `Consumer`; `docs/consumers.md`
has a whole one. fastcap itself runs three, one in each of `fastcap.consumers.memory`,
`fastcap.consumers.archive` and `fastcap.consumers.check`; a new one is a module beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastcap.engine import Pass
from fastcap.errors import ResultError
from fastcap.model.rows import count_rows
from fastcap.transfer.base import Target


class Consumer(ABC):
    """Receives what passes capture, pass by pass, instead of a loop over records.

    Give one to `fastcap.stream(..., consumer=)` and iterate over the stream to run it. For each
    pass, `begin` is called before the model, `place` in the hook of every captured call, and `end`
    when the model has returned and everything is on its way to host memory; `drain` is called once,
    when the batches are over. All four run on the thread that iterates over the stream. An error
    in any of them ends the stream. A pass that fails has a `begin` and no `end`.

    Example:
        >>> import torch, fastcap
        >>> class Peak(fastcap.Consumer):
        ...     def __init__(self):
        ...         self.found = {}
        ...     def end(self, finished):
        ...         for site in finished.sites:
        ...             peak = finished.tensor(site).max().item()
        ...             self.found[site] = max(peak, self.found.get(site, peak))
        >>> peak = Peak()
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> batches = [torch.zeros(4, 2), torch.ones(4, 2)]
        >>> for _ in fastcap.stream(model, batches, ["1"], consumer=peak):
        ...     pass
        >>> peak.found.keys()
        dict_keys(['1'])
    """

    def begin(self, n_samples: int) -> None:  # noqa: B027 - needed by few
        """A pass is about to run.

        Args:
            n_samples: Samples in its batch.
        """

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Target | None]:
        """In the hook: say which rows of a value are wanted and, if that is known, where they go.

        What is not returned is not copied. Called for each call of a site, also for those that a
        later call of the same pass supersedes; an error is raised into the model.

        This is in the model's forward pass, and on an accelerator `value` is not computed yet. So
        slice it and look at its shape, and no more: do not write to it, keep it, or ask for its
        elements (`.cpu()`, `.item()`, `print`), which would wait for the accelerator.

        Args:
            site: The site's name.
            value: What was selected there, on its own device, detached: `(n_samples, ...)` for most
                modules, `(sum(lengths), ...)` with `positions="unpadded"`.
            dtype: The dtype to deliver; `value.dtype` unless a dtype was asked for.
            lengths: With `positions="unpadded"`, how many rows each sample has; else `None`.

        Returns:
            `value` or a slice of its rows; and a contiguous CPU tensor of that shape and of `dtype`
            to write them to, or what has the methods of `fastcap.devices.base.Destination`, whose
            `copy_` is called on a host thread. `None` lets fastcap take memory.
        """
        return value, None

    @abstractmethod
    def end(self, finished: Pass) -> None:
        """The model has returned, and what it captured is on its way.

        To read it at once, ask for `finished.tensor(site)`, which waits for the copy. To have it
        copied while the next pass runs, call `finished.deliver()`, keep `finished`, and ask in the
        next `end` or in `drain`: each pass that is kept holds its values in host memory.

        Args:
            finished: `sites`, `tensor(site)`, `lengths(site)`, `deliver()` and `settle()` are for
                consumers.
        """

    def drain(self) -> None:  # noqa: B027 - needed by those that keep passes
        """The batches are over, or ended with an error that is raised next: the last chance to ask
        for values of passes that are kept. Not called when the stream is closed early.
        """


class RowConsumer(Consumer):
    """A consumer of rows that stand for samples, and what all of these check.

    Attributes:
        n_done: Samples whose passes are over.
    """

    def __init__(self) -> None:
        self._n_batch = 0
        self._n_passes = 0
        self._misfits: dict[str, tuple[int, ...]] = {}
        self.n_done = 0

    def _begin_batch(self, n_samples: int) -> None:
        self._misfits.clear()
        self._n_batch = n_samples

    def _has_row_per_sample(
        self, site: str, value: Tensor, lengths: tuple[int, ...] | None = None
    ) -> bool:
        """In the hook: whether rows can be matched to samples. An error, if they cannot, only once
        the pass is over: a later call of the same site may supersede this one.
        """
        self._misfits.pop(site, None)
        n_rows = self._n_batch if lengths is None else sum(lengths)
        n_samples = self._n_batch if lengths is None else len(lengths)
        fits = value.ndim > 0 and value.shape[0] == n_rows and n_samples == self._n_batch
        if not fits:
            self._misfits[site] = tuple(value.shape)
        return fits

    def _refuse_misfits(self) -> None:
        for site, shape in self._misfits.items():
            raise ResultError(
                f"Site {site!r} produced shape {shape} for a batch of {self._n_batch} samples: its "
                "first dimension is not the batch, so its rows cannot be matched to samples. Name "
                "the dimension that counts samples with batch_dim=, capture another module, or "
                "receive it batch by batch with fastcap.stream()."
            )

    def _end_batch(self, n_kept: int) -> None:
        self.n_done += n_kept
        self._n_passes += 1


def check_batch(start: int, batch: Any, n_expected: int) -> None:
    """Whether a batch has the samples that it was made of, as far as it says how many it has.

    Raises:
        ResultError: It has more, or fewer.
    """
    n_found = count_rows(batch, n_expected)
    if n_found is not None:
        check_batch_size(start, n_found, n_expected)


def check_batch_size(start: int, n_found: int, n_expected: int) -> None:
    """The same where the number is known.

    Raises:
        ResultError: It is another.
    """
    if n_found != n_expected:
        raise ResultError(
            f"Samples {start} to {start + n_expected - 1} became a batch of {n_found}, so its rows "
            "cannot be matched to them. collate_fn must keep every sample, as one row."
        )
