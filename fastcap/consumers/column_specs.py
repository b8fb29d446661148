"""How many files a process may have open, against how many an archive needs."""

from __future__ import annotations

import resource

from fastcap.errors import ArgumentError

OTHERS = 256
"""Descriptors left for everything else in the process."""


def allow_open_files(n_streams: int) -> None:
    """Raise the process's limit to what it takes: a file per stream of up to three groups.

    Raises:
        ArgumentError: The limit that it may be raised to is too low.
    """
    needed = 3 * n_streams + OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ArgumentError(
            f"{n_streams} sites and inputs need {needed} open files, and this process may have "
            f"{hard}. Raise the limit (ulimit -Hn {needed}), or extract fewer sites at a time."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
