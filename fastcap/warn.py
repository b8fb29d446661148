"""Warnings that point at the line of user code that caused them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

from fastcap.errors import FastcapWarning

_OWN_FOLDER = f"{Path(__file__).parent}{os.sep}"


def warn(message: str) -> None:
    """Warn with the line of the caller's code that led here, past fastcap's and torch's frames."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, FastcapWarning, stacklevel=level + 1)


def _is_library(filename: str) -> bool:
    return filename.startswith(_OWN_FOLDER) or f"{os.sep}torch{os.sep}" in filename
