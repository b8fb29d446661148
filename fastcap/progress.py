"""Progress of a long run: a bar from tqdm, or whatever callable the caller gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

from fastcap.errors import ArgumentTypeError, MissingExtraError

Progress: TypeAlias = bool | Callable[[int, int | None], object]
"""`True` for a bar, or a callable given the samples done and the samples expected."""


@contextlib.contextmanager
def open_progress(progress: Progress, n_expected: int | None) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of samples done.

    Raises:
        MissingExtraError: A bar was asked for, and tqdm is not installed.
        ArgumentTypeError: Neither a bool nor a callable.
    """
    if callable(progress):
        report = progress
        yield lambda n_done: report(n_done, n_expected)
    elif progress is True:
        with _bar(n_expected) as advance:
            yield advance
    elif progress is False or progress is None:
        yield lambda n_done: None
    else:
        raise ArgumentTypeError(
            "progress must be True, False or a callable given the samples done and expected; "
            f"got {progress!r}."
        )


@contextlib.contextmanager
def _bar(n_expected: int | None) -> Iterator[Callable[[int], object]]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingExtraError(
            "progress=True needs tqdm: pip install 'torch-fastcap[cli]'. Or pass a callable."
        ) from error
    with tqdm(total=n_expected, unit="sample", desc="fastcap") as bar:
        yield lambda n_done: bar.update(n_done - bar.n)
