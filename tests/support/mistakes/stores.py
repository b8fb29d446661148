"""Stores, and files of activations."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.datasets import make_ids
from tests.support.mistakes.case import Case, untyped
from tests.support.models import FailsAt, LanguageModel, hooks_on

IDS = make_ids(3)
OWN = RuntimeError("out of luck")


def plain(site: str = "norm", model: nn.Module | None = None) -> Tensor:
    """The value of a site by a plain hook."""
    found: list[Tensor] = []
    model = LanguageModel() if model is None else model
    module = model.get_submodule(site)
    handle = module.register_forward_hook(lambda _m, _a, output: found.append(output.detach()))
    model(IDS)
    handle.remove()
    return found[0]


def used(sites: Any = ("norm",), **options: Any) -> Any:
    """A store after one pass."""
    model = LanguageModel()
    with untyped.ActivationStore(model, list(sites), **options) as store:
        model(IDS)
    return store


def enabled_twice() -> Any:
    model = LanguageModel()
    store = untyped.ActivationStore(model, ["norm"])
    store.enable()
    n_hooks = hooks_on(model)
    store.enable()
    model(IDS)
    assert hooks_on(model) == n_hooks
    store.disable()
    store.disable()
    assert hooks_on(model) == 0
    return store.get("norm")


def before_enable() -> Any:
    model = LanguageModel()
    store = untyped.ActivationStore(model, ["norm"])
    model(IDS)
    return store.get("norm")


def after_disable() -> Any:
    model = LanguageModel()
    with untyped.ActivationStore(model, ["norm"]) as store:
        model(IDS)
    model(IDS * 0)
    return store.get("norm")


def copied_model() -> Any:
    model = LanguageModel()
    with untyped.ActivationStore(model, ["norm"]) as store:
        copied = copy.deepcopy(model)
        copied(IDS)
        return hooks_on(copied), len(store)


def failing() -> Any:
    model = FailsAt(OWN)
    with untyped.ActivationStore(model, ["before", "after"]):
        model(IDS)


def forgotten() -> Any:
    model = LanguageModel()
    store = untyped.ActivationStore(model, ["norm"])
    store.enable()
    del store
    return hooks_on(model)


def changed_by_owner() -> Any:
    store = used()
    first = store["norm"].clone()
    value = store["norm"]
    value.zero_()
    return torch.equal(store["norm"], first)


def cleared() -> Any:
    store = used()
    store.clear()
    return store["norm"]


def never_called() -> Any:
    with untyped.ActivationStore(LanguageModel(), ["norm"]) as store:
        return store["norm"]


def two_stores() -> Any:
    model = LanguageModel()
    with (
        untyped.ActivationStore(model, ["norm"]) as first,
        untyped.ActivationStore(model, ["norm"]) as second,
    ):
        model(IDS)
    return [first["norm"], second["norm"]]


def replaced() -> Any:
    model = LanguageModel()
    with untyped.ActivationStore(model, ["norm"]) as store:
        model.norm = nn.RMSNorm(16)
        model(IDS)
        return store.get("norm")


STORES = [
    Case("`get` of a misspelt site", lambda _: used().get("nrom"), lambda: None, "`None`"),
    Case("`store[...]` of a misspelt site", lambda _: used()["nrom"]),
    Case(
        "`get` of a module that exists and was not asked for",
        lambda _: used().get("layers.0"),
        lambda: None,
        "`None`",
    ),
    Case("`store[...]` with a number", lambda _: used()[0]),
    Case("`store[...]` before any pass", lambda _: never_called()),
    Case("`store[...]` after `clear()`", lambda _: cleared()),
    Case("a pass without `enable()`", lambda _: before_enable(), lambda: None, "`None`"),
    Case("`enable()` twice, and `disable()` twice", lambda _: enabled_twice(), plain, "Hooks once"),
    Case(
        "a pass after `disable()`", lambda _: after_disable(), plain, "The value of the pass before"
    ),
    Case(
        "`enable()` with a misspelt site",
        lambda _: untyped.ActivationStore(LanguageModel(), ["nrom"]).enable(),
    ),
    Case("a function in place of the model", lambda _: untyped.ActivationStore(len, ["norm"])),
    Case("`deepcopy(store)`", lambda _: copy.deepcopy(used())),
    Case("`pickle.dumps(store)`", lambda _: pickle.dumps(used())),
    Case(
        "`deepcopy(model)` while a store is enabled",
        lambda _: copied_model()[1],
        lambda: 0,
        "The copy does not capture",
    ),
    Case(
        "a store that nobody holds any more", lambda _: forgotten(), lambda: 0, "Its hooks are gone"
    ),
    Case("a pass that raises", lambda _: failing(), own=OWN),
    Case(
        "two stores of one site",
        lambda _: two_stores(),
        lambda: [plain(), plain()],
        "A value in each",
    ),
    Case(
        "a module that was replaced after `enable()`",
        lambda _: replaced(),
        lambda: None,
        "`None`, as the module that has the hook is not called",
    ),
    Case("`positions='lsat'`, to a store", lambda _: used(positions="lsat")),
    Case("`mask=[1]`, to a store", lambda _: used(positions="last", mask=[1])),
    Case("no sites, to a store", lambda _: list(used([])), list, "Nothing is captured"),
]

ACTS = {"norm": torch.ones(2, 3)}


def saved(acts: Any, path: Path, **options: Any) -> Any:
    return untyped.load_activations(untyped.save_activations(acts, path, **options))


def as_file(folder: Path) -> Path:
    path = folder / "file"
    path.write_text("text")
    return path


def as_folder(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    return path


def damaged(folder: Path, name: str, n_bytes: int = 40) -> Path:
    path: Path = untyped.save_activations(ACTS, folder / name)
    path.write_bytes(path.read_bytes()[:n_bytes])
    return path


def text_file(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_text("not a file of tensors, by any means")
    return path


def pickled(folder: Path) -> Path:
    path = folder / "acts.npz"
    np.savez(path, norm=np.array([{"a": 1}], dtype=object))
    return path


def misnamed(folder: Path) -> Path:
    path = folder / "acts.npz"
    torch.save(ACTS, path)
    return path


SAVING = [
    Case(
        "a tensor in place of a dict",
        lambda folder: untyped.save_activations(torch.ones(2), folder / "a"),
    ),
    Case(
        "a list of pairs in place of a dict",
        lambda folder: untyped.save_activations([("a", torch.ones(2))], folder / "a"),
    ),
    Case(
        "the store in place of its values",
        lambda folder: untyped.save_activations(used(), folder / "a"),
    ),
    Case("an empty dict", lambda folder: saved({}, folder / "a"), dict, "A file without tensors"),
    Case(
        "a name that is a number",
        lambda folder: untyped.save_activations({1: torch.ones(1)}, folder / "a"),
    ),
    Case(
        "a name with a NUL character",
        lambda folder: untyped.save_activations({"a\0b": torch.ones(1)}, folder / "a"),
    ),
    Case(
        "names that `numpy.savez` takes for its own, `file` and `allow_pickle`",
        lambda folder: saved({"file": torch.ones(1), "allow_pickle": torch.zeros(1)}, folder / "a"),
        lambda: {"file": torch.ones(1), "allow_pickle": torch.zeros(1)},
        "Both, under their names",
    ),
    Case(
        "a value that is a list",
        lambda folder: untyped.save_activations({"a": [1.0]}, folder / "a"),
    ),
    Case(
        "a value that is `None`", lambda folder: untyped.save_activations({"a": None}, folder / "a")
    ),
    Case(
        "an array of texts",
        lambda folder: untyped.save_activations({"a": np.array(["a"])}, folder / "a"),
    ),
    Case(
        "a sparse tensor",
        lambda folder: untyped.save_activations({"a": torch.eye(3).to_sparse()}, folder / "a"),
    ),
    Case(
        "a tensor on the meta device",
        lambda folder: untyped.save_activations({"a": torch.ones(2, device="meta")}, folder / "a"),
    ),
    Case(
        "a tensor that needs gradients",
        lambda folder: saved({"a": torch.ones(2, requires_grad=True)}, folder / "a"),
        lambda: {"a": torch.ones(2)},
        "Its values",
    ),
    Case(
        "bfloat16, to `.npz`",
        lambda folder: saved({"a": torch.ones(2).bfloat16()}, folder / "a.npz"),
        lambda: {"a": torch.ones(2)},
        "As float32",
    ),
    Case(
        "bfloat16, to `.safetensors`",
        lambda folder: saved({"a": torch.ones(2).bfloat16()}, folder / "a.safetensors"),
        lambda: {"a": torch.ones(2).bfloat16()},
        "As it is",
    ),
    Case(
        "two names of one tensor, to `.safetensors`",
        lambda folder: saved({"a": ACTS["norm"], "b": ACTS["norm"]}, folder / "a.safetensors"),
        lambda: {"a": torch.ones(2, 3), "b": torch.ones(2, 3)},
        "Both, each whole",
    ),
    Case(
        "`dtype='float16'`",
        lambda folder: untyped.save_activations(ACTS, folder / "a", dtype="float16"),
    ),
    Case(
        "a name with a dot, `step_5.0`",
        lambda folder: untyped.save_activations(ACTS, folder / "step_5.0").name,
        lambda: "step_5.0.npz",
        "The suffix is added, and nothing is cut off",
    ),
    Case(
        "a path that is a folder",
        lambda folder: untyped.save_activations(ACTS, as_folder(folder, "a.npz")),
    ),
    Case(
        "a path below a file",
        lambda folder: untyped.save_activations(ACTS, as_file(folder) / "a.npz"),
    ),
    Case("a path that is `None`", lambda folder: untyped.save_activations(ACTS, None)),
    Case("an empty path", lambda folder: untyped.save_activations(ACTS, "")),
    Case(
        "a folder that does not exist",
        lambda folder: saved(ACTS, folder / "some" / "where" / "a"),
        lambda: ACTS,
        "It is made",
    ),
]

LOADING = [
    Case("a file that does not exist", lambda folder: untyped.load_activations(folder / "acts")),
    Case("a folder", lambda folder: untyped.load_activations(as_folder(folder, "acts.npz"))),
    Case("a path that is `None`", lambda folder: untyped.load_activations(None)),
    Case(
        "a text that is called `.npz`",
        lambda folder: untyped.load_activations(text_file(folder, "a.npz")),
    ),
    Case(
        "a text that is called `.safetensors`",
        lambda folder: untyped.load_activations(text_file(folder, "a.safetensors")),
    ),
    Case(
        "an `.npz` that was cut off",
        lambda folder: untyped.load_activations(damaged(folder, "a.npz")),
    ),
    Case(
        "a `.safetensors` that was cut off",
        lambda folder: untyped.load_activations(damaged(folder, "a.safetensors")),
    ),
    Case(
        "an empty `.safetensors`",
        lambda folder: untyped.load_activations(damaged(folder, "a.safetensors", 0)),
    ),
    Case("an `.npz` of pickled objects", lambda folder: untyped.load_activations(pickled(folder))),
    Case(
        "what `torch.save` wrote, called `.npz`",
        lambda folder: untyped.load_activations(misnamed(folder)),
    ),
    Case(
        "a path without its suffix",
        lambda folder: untyped.load_activations(
            untyped.save_activations(ACTS, folder / "a").with_suffix("")
        ),
        lambda: ACTS,
        "The `.npz`",
    ),
]

GROUPS = {
    "Stores": STORES,
    "`save_activations`": SAVING,
    "`load_activations`": LOADING,
}
