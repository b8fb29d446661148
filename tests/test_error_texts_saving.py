"""What is said when activations cannot be saved, and that nothing partial is left behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from fastcap import FastcapWarning, save_activations
from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    SaveError,
    UnsupportedTensorError,
)
from tests.support.errors import message_of

ACTS = {"layers.0": torch.ones(2, 3), "norm": torch.zeros(4)}
SUFFIXES = ["npz", "safetensors"]


def refused(error: type[Exception], acts: Any, path: Path, **options: Any) -> str:
    """What is said about activations that cannot be saved; nothing is written."""
    message = message_of(error, lambda: save_activations(acts, path, **options))
    assert list(path.parent.iterdir()) == []
    return message


# What is saved


@pytest.mark.parametrize("name", [1, None, b"norm", ("a", "b")], ids=repr)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_that_is_no_string_is_refused(tmp_path: Path, suffix: str, name: Any) -> None:
    acts = {"norm": torch.ones(1), name: torch.ones(1)}

    assert refused(ArgumentTypeError, acts, tmp_path / f"acts.{suffix}") == (
        f"Names of activations must be strings; got {name!r}."
    )


def test_a_name_with_a_nul_character_is_refused_with_the_reason(tmp_path: Path) -> None:
    assert refused(ArgumentError, {"a\0b": torch.ones(1)}, tmp_path / "acts") == (
        "The name 'a\\x00b' has a NUL character, where zip files end a name."
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    [([1.0, 2.0], "list"), (1.0, "float"), (None, "NoneType"), ({"a": torch.ones(1)}, "dict")],
    ids=["list", "float", "None", "dict"],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_value_that_is_no_tensor_is_refused_by_name(
    tmp_path: Path, suffix: str, value: Any, kind: str
) -> None:
    acts = {"fine": torch.ones(1), "norm": value}

    assert refused(ArgumentTypeError, acts, tmp_path / f"acts.{suffix}") == (
        f"Cannot save 'norm': it is a {kind}, not a tensor or array."
    )


@pytest.mark.parametrize(
    "array",
    [np.array(["a", "b"]), np.array([object()]), np.array(["2026-01-01"], dtype="datetime64[D]")],
    ids=["text", "objects", "dates"],
)
def test_an_array_of_a_dtype_that_torch_lacks_is_refused_by_name(
    tmp_path: Path, array: np.ndarray[Any, Any]
) -> None:
    assert refused(ArgumentTypeError, {"a": array}, tmp_path / "acts") == (
        f"Cannot save 'a': it is an array of {array.dtype}, which torch cannot hold. Convert it to "
        "a native numeric dtype first."
    )


ODD_TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(2, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


# torch says of these kinds that they are prototypes or on their way out.
@pytest.mark.filterwarnings("ignore:.*(prototype|deprecated):UserWarning")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_is_not_dense_or_has_no_data_is_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    assert refused(UnsupportedTensorError, {"a": ODD_TENSORS[kind]()}, tmp_path / "acts") == (
        "Cannot save 'a': only dense tensors with data can be saved. Convert it first (to_dense(), "
        "dequantize(), torch.nested.to_padded_tensor)."
    )


@pytest.mark.parametrize("dtype", ["float16", np.float16, float], ids=repr)
def test_a_dtype_that_is_none_of_torch_is_refused(tmp_path: Path, dtype: Any) -> None:
    assert refused(ArgumentTypeError, ACTS, tmp_path / "acts", dtype=dtype) == (
        f"dtype must be a torch.dtype such as torch.float16; got {dtype!r}."
    )


def test_widening_says_once_what_is_stored_and_how_to_choose(tmp_path: Path) -> None:
    acts = {"fine": torch.ones(2), "a": torch.ones(2).bfloat16(), "b": torch.ones(2).bfloat16()}
    with pytest.warns(FastcapWarning) as said:
        save_activations(acts, tmp_path / "acts")

    [warning] = said
    assert str(warning.message) == (
        "NumPy has no bfloat16: 'a' (and 1 more) is stored as float32, exactly, in twice the space "
        "or more. To keep the dtype, save to a path that ends in .safetensors; to choose one, pass "
        "dtype=."
    )
    assert warning.filename == __file__


# Where it is saved


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_path_that_is_a_folder_is_refused_with_a_file_in_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"acts.{suffix}"
    path.mkdir()

    message = message_of(SaveError, lambda: save_activations(ACTS, path))

    assert message == (
        f"Cannot save activations to {str(path)!r}: it is a folder. For example "
        f"{str(path / 'activations.npz')!r}."
    )
    assert list(path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    parent = tmp_path / "file"
    parent.write_text("mine")

    with pytest.raises(SaveError) as caught:
        save_activations(ACTS, parent / "acts.npz")

    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert f"Cannot save activations to {str(parent / 'acts.npz')!r}: " in str(caught.value)
    assert parent.read_text() == "mine"


def _raising(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.EPERM, errno.EROFS], ids=lambda n: errno.errorcode[n]
)
@pytest.mark.parametrize("where", ["mkdir", "replace"])
def test_a_folder_that_cannot_be_written_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    monkeypatch.setattr(Path, where, _raising(number))

    with pytest.raises(SaveError) as caught:
        save_activations(ACTS, tmp_path / "acts.npz")

    assert caught.value.errno == number
    assert str(caught.value) == (
        f"Cannot save activations to {str(tmp_path / 'acts.npz')!r}: {os.strerror(number)}. "
        "Choose a folder you can write to."
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert list(tmp_path.iterdir()) == []


# A full disk


def _fill_at(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Have the disk fill up at one step of saving."""
    full = _raising(errno.ENOSPC)
    real_write = np.lib.format.write_array

    def write_half(member: Any, array: Any, **options: Any) -> None:
        real_write(member, array[: len(array) // 2], **options)
        full()

    def refuse_tensors(tensors: object, path: Path) -> NoReturn:
        path.write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    changes: dict[str, Callable[[], None]] = {
        "write": lambda: monkeypatch.setattr("numpy.lib.format.write_array", write_half),
        "sync": lambda: monkeypatch.setattr(os, "fsync", full),
        "rename": lambda: monkeypatch.setattr(Path, "replace", full),
        "safetensors": lambda: monkeypatch.setattr(safetensors.torch, "save_file", refuse_tensors),
    }
    changes[step]()


@pytest.mark.parametrize("step", ["write", "sync", "rename", "safetensors"])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "replacing"])
def test_a_full_disk_leaves_an_older_file_as_it_was_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, step: str
) -> None:
    path = tmp_path / ("acts.safetensors" if step == "safetensors" else "acts.npz")
    if exists:
        path.write_bytes(b"older")
    _fill_at(monkeypatch, step)

    with pytest.raises(SaveError) as caught:
        save_activations(ACTS, path)

    assert caught.value.errno == errno.ENOSPC
    text = str(caught.value)
    assert f"Cannot save activations to {str(path)!r}: " in text
    assert "No space left on device" in text
    assert text.endswith(" is free there. Nothing was left behind; an older file is as it was.")
    assert list(tmp_path.iterdir()) == ([path] if exists else [])
    assert not exists or path.read_bytes() == b"older"


def test_a_failure_of_the_safetensors_library_is_an_error_of_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tensors: object, path: Path) -> NoReturn:
        raise SafetensorError("header too large")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(SaveError, match=r"header too large\. Nothing was left behind\.") as caught:
        save_activations(ACTS, tmp_path / "acts.safetensors")

    assert caught.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["write_array", "fsync"])
def test_an_interrupt_while_saving_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format if step == "write_array" else os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_activations(ACTS, tmp_path / "acts.npz")

    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_safetensors_does_not_have(tmp_path: Path) -> None:
    acts = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex128)}
    path = tmp_path / "acts.safetensors"
    assert message_of(UnsupportedTensorError, lambda: save_activations(acts, path)) == (
        "Cannot save 'b': .safetensors has no torch.complex128. Save to .npz, or pass dtype= with "
        "one that it has."
    )
    assert list(tmp_path.iterdir()) == []
