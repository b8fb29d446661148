"""`fastcap`: the command line.

app       the commands put together
command   what all commands share: errors, exit codes, options of several values
words     options that several commands have
bench, demo, extract, inspect, plan, sites   one command each: parse, call the library, print
"""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """What the `fastcap` script runs."""
    try:
        for package in ("typer", "rich", "tqdm"):
            import_module(package)
    except ImportError as error:
        sys.exit(f"fastcap: needs {error.name}. Install it with: pip install 'torch-fastcap[cli]'")
    from fastcap.cli.app import run

    run(sys.argv[1:])
