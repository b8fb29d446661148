"""Run Python on the stand-in runtime, from the project's root.

    python -m tests.standin_cuda -m pytest -m gpu
    STANDIN_CUDA_DEVICES=2 python -m tests.standin_cuda program.py

The interpreter is the one that runs this; it has to have a CUDA build of torch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.standin_cuda.build import DRIVER, RUNTIME, CannotBuildError, build

PROJECT = Path(__file__).resolve().parents[2]


def environment(folder: Path) -> dict[str, str]:
    """The environment in which torch finds the stand-in, built in `folder`."""
    runtime = str(folder / RUNTIME)
    preload = Path(__file__).parent / "preload"
    paths = [str(preload), str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "LD_PRELOAD": runtime,
        "LD_LIBRARY_PATH": str((folder / DRIVER).parent),
        "PYTHONPATH": os.pathsep.join(paths),
        "STANDIN_CUDA_LIBRARY": runtime,
    }


def main() -> None:
    folder = Path(sys.prefix) / "standin"
    try:
        build(folder)
    except CannotBuildError as error:
        sys.exit(str(error))
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment(folder))


if __name__ == "__main__":
    main()
