"""`fastcap`: the command line.

app       the commands put together
command   what all commands share: errors, exit codes, options of several values
options   options that several commands have
bench, demo, extract, inspect, plan, repair, sites   one command each: parse, call, print

Nothing here imports torch before a command runs: `--help` answers at once.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """What the `fastcap` script runs."""
    for package in ("typer", "rich", "tqdm"):
        if find_spec(package) is None:
            sys.exit(f"fastcap: needs {package}. Install it with: pip install 'torch-fastcap[cli]'")
    from fastcap.cli.app import run

    run(sys.argv[1:])
