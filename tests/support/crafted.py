"""What the tests of crafted archives share: an archive to change, limits, and why it is refused."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastcap.archive.layout import META
from fastcap.archive.reader import open_archive
from fastcap.errors import ArchiveFormatError
from tests.support.archives import Tampered
from tests.support.errors import message_of

GROUPS = [[[0, 1], [2]], [[3, 4]]]
BUDGET_BYTES = 512 << 20
"""Address space that reading something impossible may take beyond what is taken already."""


def numbered(names: str | Sequence[str], table: Sequence[Any]) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` with numbers for names."""
    return pytest.mark.parametrize(names, table, ids=range(len(table)))


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
    """A large allocation fails, and so does its test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BUDGET_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def why_not(root: Path) -> str:
    """Why an archive cannot be opened, without the names of its files."""
    message = message_of(ArchiveFormatError, lambda: open_archive(root))
    for path in [*root.glob("w-*/*"), *root.glob("w-*"), root / META, root]:
        name = {root: "ROOT", root / META: "META"}.get(path, path.name)
        message = message.replace(str(path), "WRITER" if name.startswith("w-") else name)
    return message


def why_not_read(root: Path, name: str = "layers.0") -> str:
    """Why the first sample cannot be read, which is what `verify` reports too."""
    archive = open_archive(root)
    problems = archive.verify()
    message = message_of(ArchiveFormatError, lambda: archive[name][0])
    assert message in [problem.what for problem in problems]
    return message.replace(str(Tampered.open(root).shard), "SHARD")
