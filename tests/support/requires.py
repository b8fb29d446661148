"""Skips for what a machine may lack: a GPU machine brings torch and pytest, and little else."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def _missing_of_the_command_line() -> str:
    """What a command cannot run without and does not find here, by running an empty one."""
    try:
        import typer
        from typer.testing import CliRunner

        app = typer.Typer()
        app.command()(lambda: None)
        error = CliRunner().invoke(app, []).exception
    except ModuleNotFoundError as missing:
        error = missing
    return str(error.name) if isinstance(error, ModuleNotFoundError) else ""


_missing = _missing_of_the_command_line()
needs_command_line = pytest.mark.skipif(
    bool(_missing), reason=f"commands need {_missing}, which is not here"
)
needs_greenlet = pytest.mark.skipif(
    find_spec("greenlet") is None, reason="runs in turns need greenlet, which is not here"
)
