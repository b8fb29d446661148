"""Writing a report's files."""

from __future__ import annotations

from pathlib import Path

from fastcap.errors import SaveError


def check_writable(path: Path) -> None:
    """Find out before anything is measured; leaves no file that was not there.

    Raises:
        SaveError: It cannot be written.
    """
    was_there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise _save_error(path, error) from error
    if not was_there:
        path.unlink()


def _save_error(path: Path, error: OSError) -> SaveError:
    return SaveError(error.errno, f"Cannot write {path}: {error.strerror}.")


def write_text(path: Path, text: str) -> None:
    """Write a file, and make the folders it lies in.

    Raises:
        SaveError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _save_error(path, error) from error
