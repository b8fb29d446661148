"""`load_activations`: what was saved comes back, and nothing but tensors is ever loaded."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastcap import load_activations, save_activations
from fastcap.errors import LoadError
from fastcap.reference import differences
from tests.support.errors import message_of

ACTS = {
    "layers.0.mlp": torch.arange(24.0).reshape(2, 3, 4),
    "a": torch.ones(2, dtype=torch.int8),
    "a.npy": torch.zeros(3, dtype=torch.complex64),
    "file": torch.tensor(True),
    "allow_pickle": torch.empty(0, 4),
    "": torch.full((2, 2), float("nan")),
    "with/slash é": torch.ones(1, dtype=torch.float16),
}


def why_not(path: Path) -> str:
    return message_of(LoadError, lambda: load_activations(path)).replace(str(path), "FILE")


@pytest.mark.parametrize("name", ["acts", "acts.npz", "step_5.0", "acts.safetensors"])
def test_what_was_saved_comes_back(tmp_path: Path, name: str) -> None:
    written = save_activations(ACTS, tmp_path / name)
    for path in (tmp_path / name, written, str(written)):
        found = load_activations(path)
        assert set(found) == set(ACTS)
        assert differences({key: ACTS[key] for key in found}, found) == []
        assert all(type(value) is Tensor for value in found.values())
        assert all(value.is_contiguous() for value in found.values())


def test_the_order_of_names_in_an_npz_is_kept(tmp_path: Path) -> None:
    assert list(load_activations(save_activations(ACTS, tmp_path / "acts"))) == list(ACTS)


def test_bfloat16_keeps_its_dtype_in_safetensors(tmp_path: Path) -> None:
    acts = {"norm": torch.ones(2, dtype=torch.bfloat16)}
    found = load_activations(save_activations(acts, tmp_path / "acts.safetensors"))
    assert differences(acts, found) == []


def test_what_numpy_wrote_is_loaded_whatever_its_layout(tmp_path: Path) -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3)
    np.savez_compressed(tmp_path / "acts.npz", big=array, columns=np.asfortranarray(array))
    found = load_activations(tmp_path / "acts.npz")
    expected = torch.arange(6.0).reshape(2, 3)
    assert differences({"big": expected, "columns": expected}, found) == []


def test_a_loaded_tensor_is_not_the_file(tmp_path: Path) -> None:
    for name in ("acts.npz", "acts.safetensors"):
        path = save_activations({"a": torch.zeros(1000)}, tmp_path / name)
        before = path.read_bytes()
        load_activations(path)["a"].fill_(1)
        assert path.read_bytes() == before


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "acts.npz"
    np.savez(path, allow_pickle=True, a=np.array([Bomb()], dtype=object))
    assert why_not(path) == (
        "Cannot load activations from 'FILE': 'a.npy' in it is not an array that torch can hold: "
        "Object arrays cannot be loaded when allow_pickle=False."
    )
    path.write_bytes(pickle.dumps(Bomb()))
    assert why_not(path) == (
        "Cannot load activations from 'FILE': it is not a valid .npz, or it is damaged: File is "
        "not a zip file."
    )


def test_arrays_that_torch_cannot_hold_are_named(tmp_path: Path) -> None:
    path = tmp_path / "acts.npz"
    np.savez(path, words=np.array(["one", "two"]))
    assert why_not(path).startswith(
        "Cannot load activations from 'FILE': 'words.npy' in it is not an array that torch can hold"
    )


def test_a_file_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    assert message_of(LoadError, lambda: load_activations(tmp_path / "acts")) == (
        f"Cannot load activations from {str(tmp_path / 'acts.npz')!r}: No such file or directory. "
        f"{str(tmp_path)!r} was looked in. It has no .npz and no .safetensors."
    )
    save_activations(ACTS, tmp_path / "other")
    assert why_not(tmp_path / "acts.safetensors").endswith("was looked in. It has other.npz.")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    path = tmp_path / "acts.npz"
    path.mkdir()
    assert why_not(path) == (
        "Cannot load activations from 'FILE': it is a folder. Open an archive with "
        "fastcap.open_archive()."
    )


@pytest.mark.parametrize("name", ["acts.npz", "acts.safetensors"])
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str) -> None:
    path = save_activations(ACTS, tmp_path / name)
    path.write_bytes(path.read_bytes()[:-30])
    assert "it is not a valid" in why_not(path)


def test_bytes_that_changed_in_an_npz_are_an_error(tmp_path: Path) -> None:
    path = save_activations({"a": torch.zeros(1000)}, tmp_path / "acts.npz")
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset
    data = bytearray(path.read_bytes())
    data[start + 2000] ^= 1
    path.write_bytes(data)
    assert "damaged: Bad CRC-32" in why_not(path)
