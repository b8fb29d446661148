"""Writing a report's files."""

from __future__ import annotations

from pathlib import Path

from fastcap.errors import SaveError


def write_text(path: Path, text: str) -> None:
    """Write a file, and make the folders it lies in.

    Raises:
        SaveError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SaveError(error.errno, f"Cannot write {path}: {error.strerror}.") from error
