"""What all commands share."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import typer

from fastcap.errors import FastcapError, FastcapWarning, SaveError

STATUS_ERROR = 1
STATUS_INTERRUPTED = 130  # 128 + SIGINT, as shells count


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a subcommand: errors and warnings are one line, and Ctrl-C is quiet."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", FastcapWarning)
                warnings.showwarning = _show_warning(warnings.showwarning)
                function(*args, **options)
        except FastcapError as error:
            # An OSError's text begins with its number, which says nothing to a reader.
            text = (isinstance(error, SaveError) and error.strerror) or str(error)
            to_stderr(f"fastcap: {text}")
            raise typer.Exit(STATUS_ERROR) from None
        except KeyboardInterrupt as interrupt:
            if str(interrupt):
                to_stderr(f"fastcap: {interrupt}")
            raise typer.Exit(STATUS_INTERRUPTED) from None
        except SystemExit as end:  # the library ends a run that a signal stopped
            raise typer.Exit(end.code if isinstance(end.code, int) else STATUS_ERROR) from None

    return run


def _show_warning(show: Callable[..., None]) -> Callable[..., None]:
    def show_in_one_line(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, FastcapWarning):
            to_stderr(f"fastcap: {message}")
        else:
            show(message, category, *where)

    return show_in_one_line


def to_stderr(line: str) -> None:
    """Print a line that is not part of what was asked for."""
    typer.echo(line, err=True)


def spread(arguments: list[str]) -> list[str]:
    """Let `--sites` take several values: shells expand `layers.{0,1}` into words of their own.

    Examples:
        >>> spread(["sites", "m:model", "--sites", "a", "b", "--json"])
        ['sites', 'm:model', '--sites', 'a', '--sites', 'b', '--json']
    """
    result: list[str] = []
    is_value = is_further = False
    for argument in arguments:
        is_option = argument.startswith("-") and not is_value
        if is_further and not is_option:
            result.append("--sites")
        result.append(argument)
        is_further = not is_option and (is_value or is_further)
        is_value = is_option and argument == "--sites"
    return result
