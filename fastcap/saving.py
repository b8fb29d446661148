"""`save_activations` and `load_activations`: one file, which plain NumPy or safetensors reads too.

Written under a temporary name in the same folder, synced, then renamed: a file under the final
name is always whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    LoadError,
    SaveError,
    UnsupportedTensorError,
)
from fastcap.formatting import format_bytes
from fastcap.spec import as_path
from fastcap.warn import warn

NUMPY_DTYPES = frozenset(
    {torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
    | {torch.int8, torch.int16, torch.int32, torch.int64}
)


def save_activations(
    activations: Mapping[str, Tensor | np.ndarray[Any, Any]],
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Save named tensors to `.npz`, or to `.safetensors` if the path has that suffix.

    A missing `.npz` suffix is appended, and the name is otherwise unchanged (`step_5.0` becomes
    `step_5.0.npz`). Parent folders are created. The write is atomic: the file appears complete or
    not at all, and replaces an older one only when complete.

    Args:
        activations: Tensors (any device, gradients or not) or NumPy arrays by name. Any name works.
        path: The file to write.
        dtype: Store floating-point tensors in this dtype. By default, `.npz` stores dtypes that
            NumPy lacks (bfloat16, float8) as float32, which is exact, and warns once;
            `.safetensors` keeps every dtype.

    Returns:
        The path of the file.

    Raises:
        SaveError: The folder or file cannot be written, or the disk is full; nothing is left.
        ArgumentTypeError: A value is not a tensor or array, or a name is not a string.
        UnsupportedTensorError: A sparse, nested, quantised or meta tensor.

    Examples:
        >>> import tempfile, numpy, torch, fastcap
        >>> folder = tempfile.mkdtemp()
        >>> path = fastcap.save_activations({"layers.0": torch.ones(2, 3)}, folder + "/acts")
        >>> path.name, numpy.load(path)["layers.0"].shape
        ('acts.npz', (2, 3))
    """
    if not isinstance(activations, Mapping):
        raise ArgumentTypeError(
            f"activations must be a dict of tensors by name; got {type(activations).__name__}."
        )
    path = _with_suffix(as_path("path", path))
    tensors = {_checked_name(name): _as_cpu(name, value) for name, value in activations.items()}
    if dtype is not None:
        if not isinstance(dtype, torch.dtype):
            raise ArgumentTypeError(
                f"dtype must be a torch.dtype such as torch.float16; got {dtype!r}."
            )
        tensors = {name: _cast(value, dtype) for name, value in tensors.items()}
    if _is_safetensors(path):
        _write_whole(path, lambda file: _write_safetensors(file, tensors), _n_bytes(tensors))
    else:
        arrays = _as_arrays(tensors)
        _write_whole(path, lambda file: _write_npz(file, arrays), _n_bytes(arrays))
    return path


def load_activations(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Load what `save_activations` has written, or any other `.npz` or `.safetensors` of tensors.

    Nothing is unpickled, so a file from anywhere is safe to load.

    Args:
        path: The file, as `save_activations` was given it or as it returned it: the suffix `.npz`
            may be missing.

    Returns:
        Tensors by name, in the order in which they were saved (`.safetensors`: by dtype and name):
        on the CPU, contiguous, in the dtype of the file.

    Raises:
        LoadError: There is no such file, or it cannot be read, or holds something but tensors.

    Example:
        >>> import tempfile, torch, fastcap
        >>> path = tempfile.mkdtemp() + "/acts"
        >>> _ = fastcap.save_activations({"layers.0": torch.ones(2, 3)}, path)
        >>> fastcap.load_activations(path)["layers.0"].shape
        torch.Size([2, 3])
    """
    path = _with_suffix(as_path("path", path))
    read = _read_safetensors if _is_safetensors(path) else _read_npz
    try:
        path.open("rb").close()  # libraries say less of a file that cannot be opened
        return read(path)
    except OSError as error:
        message = f"Cannot load activations from {str(path)!r}: {_why_not(path, error)}"
        raise LoadError(error.errno, message) from error


def _why_not(path: Path, error: OSError) -> str:
    if path.is_dir():
        return "it is a folder. Open an archive with fastcap.open_archive()."
    reason = f"{error.strerror or error}.".replace("..", ".")
    if not isinstance(error, FileNotFoundError):
        return reason
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    names = sorted(each.name for each in there if each.suffix in (".npz", ".safetensors"))
    found = f"It has {', '.join(names[:5])}." if names else "It has no .npz and no .safetensors."
    return f"{reason} {str(path.parent)!r} was looked in. {found}"


def _with_suffix(path: Path) -> Path:
    """The path of the file for what a caller wrote."""
    has_suffix = path.suffix.lower() in (".npz", ".safetensors")
    return path if has_suffix or not path.name else path.with_name(path.name + ".npz")


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise OSError(errno.EINVAL, f"it is not a valid safetensors file: {error}") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
    # numpy.load takes names apart in another way than _write_npz puts them together ("a.npy").
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                name.removesuffix(".npy"): _read_member(archive, name)
                for name in archive.namelist()
            }
    except zipfile.BadZipFile as error:
        raise OSError(errno.EINVAL, f"it is not a valid .npz, or it is damaged: {error}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> Tensor:
    try:
        with archive.open(name) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return torch.from_numpy(native).contiguous()
    except (TypeError, ValueError, EOFError) as error:
        raise OSError(
            errno.EINVAL,
            f"{name!r} in it is not an array that torch can hold: {error}",
        ) from error


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"Names of activations must be strings; got {name!r}.")
    if "\0" in name:
        raise ArgumentError(f"The name {name!r} has a NUL character, where zip files end a name.")
    return name


def _as_cpu(name: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            # torch warns of arrays it may not write to; it is not going to.
            array = value if value.flags.writeable else value.copy()
            return torch.from_numpy(np.ascontiguousarray(array).reshape(value.shape))
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"Cannot save {name!r}: it is an array of {value.dtype}, which torch cannot hold. "
                "Convert it to a native numeric dtype first."
            ) from error
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"Cannot save {name!r}: it is a {type(value).__name__}, not a tensor or array."
        )
    if value.is_nested or value.layout is not torch.strided or value.is_quantized or value.is_meta:
        raise UnsupportedTensorError(
            f"Cannot save {name!r}: only dense tensors with data can be saved. Convert it first "
            "(to_dense(), dequantize(), torch.nested.to_padded_tensor)."
        )
    return value.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    widened = {
        name: str(value.dtype) for name, value in tensors.items() if value.dtype not in NUMPY_DTYPES
    }
    if widened:
        name, dtype = next(iter(widened.items()))
        more = f" (and {len(widened) - 1} more)" if len(widened) > 1 else ""
        warn(
            f"NumPy has no {dtype.removeprefix('torch.')}: {name!r}{more} is stored as "
            f"{_wide_name(tensors[name])}, exactly, in twice the space or more. To keep the dtype, "
            "save to a path that ends in .safetensors; to choose one, pass dtype=."
        )
    return {
        name: (_widened(value) if name in widened else value).numpy()
        for name, value in tensors.items()
    }


def _widened(value: Tensor) -> Tensor:
    return value.to(torch.complex64) if value.is_complex() else value.float()


def _wide_name(value: Tensor) -> str:
    return "complex64" if value.is_complex() else "float32"


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    # numpy.savez takes names as keyword arguments and so loses or refuses some ("file").
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch(exist_ok=False)
    mode = path.stat().st_mode  # what a new file gets here; the library makes its own private
    try:
        # The library refuses tensors that share memory; each is saved whole.
        save_file({name: value.clone() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        full = "No space left" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error
    except KeyError as error:  # what the library says of a dtype that the format does not have
        name, value = next((n, v) for n, v in tensors.items() if v.dtype in error.args)
        raise UnsupportedTensorError(
            f"Cannot save {name!r}: .safetensors has no {value.dtype}. Save to .npz, or pass "
            "dtype= with one that it has."
        ) from error
    path.chmod(mode)


def _n_bytes(values: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in values.values())


def _write_whole(path: Path, write: Callable[[Path], None], n_bytes: int) -> None:
    """Write a temporary file beside `path`, sync it, rename it into place and sync the folder."""
    with _explained(path, n_bytes):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        temporary = path.with_name(f".fastcap-{uuid.uuid4().hex}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # not every folder can be opened, nor synced
            _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, n_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _advice(error, path, n_bytes)
        message = f"Cannot save activations to {str(path)!r}: {reason}. {advice}"
        raise SaveError(error.errno, message) from error


def _advice(error: OSError, path: Path, n_bytes: int) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next(parent for parent in path.absolute().parents if parent.exists())
        free = format_bytes(shutil.disk_usage(existing).free)
        return (
            f"The file needs {format_bytes(n_bytes)}, and {free} is free there. Nothing was left "
            "behind; an older file is as it was."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose a folder you can write to."
    if error.errno == errno.EISDIR:
        return f"For example {str(path / 'activations.npz')!r}."
    return "Nothing was left behind."
