"""`save_activations` as the documented one: names of files, keys, dtypes, what is written."""

from __future__ import annotations

import errno
import inspect
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastcap import FastcapWarning, save_activations, saving
from fastcap.reference import differences

NOT_IN_NUMPY = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
ACTS = {"layers.0.mlp": torch.arange(24.0).reshape(2, 3, 4), "norm": torch.ones(2, 4)}


def load(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of a `.npz`, read by plain NumPy without pickle."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def load_tensors(path: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in load(path).items()}


# Arguments and file names


def test_the_documented_signature_is_kept() -> None:
    parameters = inspect.signature(save_activations).parameters

    assert list(parameters)[:2] == ["activations", "path"]
    assert {parameters[name].kind for name in list(parameters)[2:]} == {
        inspect.Parameter.KEYWORD_ONLY
    }


def test_arguments_are_taken_by_position_and_by_name(tmp_path: Path) -> None:
    by_position = save_activations(ACTS, tmp_path / "a.npz")
    by_name = save_activations(activations=ACTS, path=tmp_path / "b.npz")

    assert by_position.read_bytes() == by_name.read_bytes()


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("acts", "acts.npz"),
        ("acts.npz", "acts.npz"),
        ("acts.NPZ", "acts.NPZ"),
        ("a.b", "a.b.npz"),
        ("acts.pt", "acts.pt.npz"),
        ("step_5.0", "step_5.0.npz"),
        (".hidden", ".hidden.npz"),
        (".npz", ".npz.npz"),
        ("acts.safetensors", "acts.safetensors"),
        ("acts.SAFETENSORS", "acts.SAFETENSORS"),
        ("with space é", "with space é.npz"),
    ],
)
def test_a_missing_suffix_is_added_and_nothing_else_of_the_name_changes(
    tmp_path: Path, asked: str, written: str
) -> None:
    assert save_activations(ACTS, tmp_path / asked) == tmp_path / written
    assert [path.name for path in tmp_path.iterdir()] == [written]


def test_steps_whose_names_differ_after_the_dot_do_not_overwrite_each_other(
    tmp_path: Path,
) -> None:
    first = save_activations({"a": torch.zeros(1)}, tmp_path / "step_5.0")
    second = save_activations({"a": torch.ones(1)}, tmp_path / "step_5.1")

    assert first != second
    assert [load(first)["a"].item(), load(second)["a"].item()] == [0.0, 1.0]


def test_the_path_may_be_a_string_or_any_path_like(tmp_path: Path) -> None:
    class Where(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(tmp_path / "like")

    assert save_activations(ACTS, str(tmp_path / "text")) == tmp_path / "text.npz"
    assert save_activations(ACTS, Where()) == tmp_path / "like.npz"


def test_a_relative_path_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert save_activations(ACTS, "acts") == Path("acts.npz")
    assert (tmp_path / "acts.npz").is_file()


def test_parent_folders_are_made(tmp_path: Path) -> None:
    path = save_activations(ACTS, tmp_path / "a" / "b" / "acts.npz")

    assert differences(ACTS, load_tensors(path)) == []


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_an_older_file_is_replaced_and_nothing_else_is_left_in_the_folder(
    tmp_path: Path, suffix: str
) -> None:
    path = save_activations({"old": torch.zeros(1000)}, tmp_path / f"acts.{suffix}")
    save_activations(ACTS, path)

    assert list(tmp_path.iterdir()) == [path]
    loaded = load_tensors(path) if suffix == "npz" else load_file(path)
    assert loaded.keys() == ACTS.keys()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_an_empty_dict_is_an_empty_file_that_loads(tmp_path: Path, suffix: str) -> None:
    path = save_activations({}, tmp_path / f"acts.{suffix}")

    assert (load(path) if suffix == "npz" else load_file(path)) == {}


def test_new_files_get_the_permissions_that_any_new_file_gets(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()

    for name in ("acts.npz", "acts.safetensors"):
        assert save_activations(ACTS, tmp_path / name).stat().st_mode == plain.stat().st_mode


# Keys


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_keys_keep_their_order(tmp_path: Path, suffix: str) -> None:
    acts = {name: torch.full((1,), float(i)) for i, name in enumerate(["z", "a", "m.1", "m.0"])}
    path = save_activations(acts, tmp_path / f"acts.{suffix}")

    if suffix == "npz":
        assert list(load(path)) == list(acts)
    else:
        assert differences(acts, {name: load_file(path)[name] for name in acts}) == []


@pytest.mark.parametrize(
    "name",
    ["file", "allow_pickle", "args", "kwds", "", "layers.0:output[1]", "a/b", "../up", "é ü", " "],
)
def test_any_string_is_a_key(tmp_path: Path, name: str) -> None:
    acts = {name: torch.arange(3.0), "other": torch.ones(1)}
    path = save_activations(acts, tmp_path / "acts")

    assert differences(acts, load_tensors(path)) == []
    assert list(tmp_path.iterdir()) == [path]


# Values


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.complex64,
        torch.complex128,
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    ],
    ids=str,
)
def test_every_dtype_that_numpy_has_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    acts = {"a": torch.tensor([[0, 1, 7], [2, 0, 1]]).to(dtype)}

    assert differences(acts, load_tensors(save_activations(acts, tmp_path / "acts"))) == []


@pytest.mark.parametrize("dtype", NOT_IN_NUMPY, ids=str)
def test_dtypes_that_numpy_lacks_are_stored_as_float32_exactly_with_one_warning(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    acts = {name: torch.tensor([0.0, -0.0, 1.5, float("nan")]).to(dtype) for name in "abc"}
    with pytest.warns(FastcapWarning, match=r"'a' \(and 2 more\) is stored as float32") as said:
        path = save_activations(acts, tmp_path / "acts")

    assert len(said) == 1
    widened = {name: value.float() for name, value in acts.items()}
    assert differences(widened, load_tensors(path)) == []
    for name, value in load_tensors(path).items():
        assert differences({name: acts[name]}, {name: value.to(dtype)}) == []


@pytest.mark.parametrize("dtype", [*NOT_IN_NUMPY, torch.float16, torch.int64, torch.bool], ids=str)
def test_safetensors_keep_every_dtype_without_a_warning(tmp_path: Path, dtype: torch.dtype) -> None:
    acts = {"a": torch.tensor([0.0, 1.0, 1.5]).to(dtype), "b": torch.ones(2, 2).to(dtype)}

    assert differences(acts, load_file(save_activations(acts, tmp_path / "a.safetensors"))) == []


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_dtype_overrides_for_floating_point_values_only(tmp_path: Path, suffix: str) -> None:
    acts = {
        "half": torch.ones(3).bfloat16(),
        "double": torch.full((2,), 1 / 3).double(),
        "ids": torch.arange(3),
        "mask": torch.ones(2).bool(),
    }
    path = save_activations(acts, tmp_path / f"acts.{suffix}", dtype=torch.float16)

    cast = {k: v.half() if v.is_floating_point() else v for k, v in acts.items()}
    loaded = load_tensors(path) if suffix == "npz" else load_file(path)
    assert differences(cast, {name: loaded[name] for name in cast}) == []


AWKWARD: dict[str, Tensor] = {
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "strided": torch.arange(20.0)[::3],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "no dimension": torch.tensor(3.0),
    "no element": torch.ones(0, 4),
    "requires a gradient": nn.Parameter(torch.ones(2)),
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "a view of more": torch.arange(1000.0)[5:7],
}


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_awkward_tensors_are_saved_as_the_values_they_show(
    tmp_path: Path, suffix: str, kind: str
) -> None:
    value = AWKWARD[kind]
    path = save_activations({"a": value}, tmp_path / f"acts.{suffix}")

    plain = torch.tensor(value.tolist(), dtype=value.dtype).reshape(value.shape)
    loaded = load_tensors(path) if suffix == "npz" else load_file(path)
    assert differences({"a": plain}, loaded) == []
    assert path.stat().st_size < 2000


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_tensors_that_share_memory_are_each_saved_whole(tmp_path: Path, suffix: str) -> None:
    base = torch.arange(8.0)
    acts = {"a": base, "b": base, "tail": base[4:]}
    path = save_activations(acts, tmp_path / f"acts.{suffix}")

    loaded = load_tensors(path) if suffix == "npz" else load_file(path)
    assert differences(acts, {name: loaded[name] for name in acts}) == []


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6)[::-2],
        np.array(2.5),
        np.zeros((0, 3), dtype=np.float16),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.array([1, 2], dtype=np.uint16),
    ],
    ids=["float32", "fortran", "reversed", "scalar", "empty", "bool", "complex", "uint16"],
)
def test_numpy_arrays_are_saved_too(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    loaded = load(save_activations({"a": array, "b": torch.ones(1)}, tmp_path / "acts"))["a"]

    np.testing.assert_array_equal(loaded, array, strict=True)


@pytest.fixture
def every_warning() -> Iterator[None]:
    """Warnings that torch gives once in a process are given each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("every_warning")
def test_a_read_only_numpy_array_is_saved_without_a_word(tmp_path: Path) -> None:
    array = np.arange(3.0)
    array.flags.writeable = False

    loaded = load(save_activations({"a": array}, tmp_path / "acts"))["a"]

    np.testing.assert_array_equal(loaded, array)


def test_saving_changes_nothing_of_what_is_saved(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    view = torch.arange(6.0).reshape(2, 3).T
    save_activations({"a": parameter, "b": view}, tmp_path / "acts", dtype=torch.float16)

    assert (parameter.requires_grad, parameter.dtype) == (True, torch.float32)
    assert (view.stride(), view.dtype) == ((1, 3), torch.float32)


def test_arrays_are_stored_uncompressed_one_member_for_each_key(tmp_path: Path) -> None:
    path = save_activations(ACTS, tmp_path / "acts")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()

    assert [member.filename for member in members] == ["layers.0.mlp.npy", "norm.npy"]
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("sync folder" if target == tmp_path else f"sync {target.suffix}")
        real_sync(descriptor)

    def replace(source: Path, target: Path) -> Path:
        steps.append(f"rename {source.suffix} to {target.name}")
        return real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    save_activations(ACTS, tmp_path / "acts")

    assert steps == ["sync .tmp", "rename .tmp to acts.npz", "sync folder"]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_half_precision_complex_is_widened_with_its_imaginary_part(tmp_path: Path) -> None:
    value = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).to(torch.complex32)
    with pytest.warns(FastcapWarning, match="stored as complex64, exactly"):
        path = save_activations({"a": value}, tmp_path / "acts")
    assert np.load(path)["a"].tolist() == [1 + 3j, 2 + 4j]


def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = saving._sync

    def refuse_folders(path: Path) -> None:
        if path.is_dir():
            raise OSError(errno.EINVAL, "not here")
        sync(path)

    monkeypatch.setattr(saving, "_sync", refuse_folders)
    path = save_activations({"a": torch.ones(2)}, tmp_path / "acts")
    assert np.load(path)["a"].tolist() == [1, 1]
