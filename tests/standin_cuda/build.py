"""Compile the stand-in runtime and its driver: seconds, and again only when the sources change."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "runtime"
TOOLKIT = Path("/usr/local/cuda/include")
RUNTIME, DRIVER = "libstandin.so", "libcuda.so.1"


class CannotBuildError(Exception):
    """Something that the build needs is not there."""


def find_headers() -> Path:
    """The folder with the headers of CUDA 13: of the packages beside torch, else of a toolkit.

    Raises:
        CannotBuildError: There is neither.
    """
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia/cu13/include"
    for folder in (packages, TOOLKIT):
        if (folder / "crt/host_defines.h").exists() and _version(folder) == "13":
            return folder
    raise CannotBuildError(
        f"The headers of CUDA 13 are neither in {packages} nor in {TOOLKIT}. "
        "Install them with: pip install nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.*"
    )


def _version(folder: Path) -> str:
    header = (folder / "cuda_runtime_api.h").read_text(errors="replace")
    [line] = [line for line in header.splitlines() if line.startswith("#define CUDART_VERSION ")]
    return str(int(line.split()[-1]) // 1000)


def build(folder: Path) -> None:
    """Put both libraries into `folder`, unless they are there and newer than their sources.

    Raises:
        CannotBuildError: A compiler or the headers are missing, or the sources do not compile.
    """
    newest = max(path.stat().st_mtime for path in SOURCES.iterdir())
    built = [folder / RUNTIME, folder / DRIVER]
    if all(path.exists() and path.stat().st_mtime > newest for path in built):
        return
    folder.mkdir(parents=True, exist_ok=True)
    include, shared = f"-I{find_headers()}", ["-O1", "-fPIC", "-shared"]
    warn = ["-Wall", "-Wextra", "-Wno-missing-field-initializers"]
    runtime = sorted(map(str, SOURCES.glob("*.cpp")))
    _compile("g++", "-std=c++17", *warn, *shared, include, *runtime, "-o", str(built[0]), "-ldl")
    name = f"-Wl,-soname,{DRIVER}"
    _compile("gcc", *shared, name, str(SOURCES / "driver.c"), "-o", str(built[1]))


def _compile(compiler: str, *arguments: str) -> None:
    if shutil.which(compiler) is None:
        raise CannotBuildError(f"{compiler} is not here. Install a C and a C++ compiler.")
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise CannotBuildError(f"{compiler} failed: see above.")
