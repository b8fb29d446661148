"""Archives: runs that are continued, and files that are not what they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import save_activations
from tests.support.datasets import make_ids, make_samples
from tests.support.mistakes.case import SAMPLES, Case, oracle, untyped
from tests.support.models import FailsAt, LanguageModel, PositionTable, WithOddModule

OWN = RuntimeError("the power went")


def extract(folder: Path, data: Any = None, model: nn.Module | None = None, **options: Any) -> Any:
    """`fastcap.extract` of one site, in batches of 3."""
    return untyped.extract(
        LanguageModel() if model is None else model,
        SAMPLES if data is None else data,
        options.pop("sites", ["norm"]),
        folder / "acts",
        **{"batch_size": 3, **options},
    )


def twice(folder: Path, again: dict[str, Any], **options: Any) -> Any:
    """A run, and one that differs, into one folder."""
    extract(folder, **options)
    return extract(folder, **{**options, **again})["norm"][:]


def values() -> Tensor:
    return oracle(batch_size=3)["norm"]


def fail(folder: Path, data: Any = None, **options: Any) -> None:
    """A run that is known to end with an error of the user's."""
    with pytest.raises(RuntimeError, match=str(OWN)):
        extract(folder, data, **options)


def stopped(folder: Path) -> Any:
    """A run whose dataset failed in its second batch."""

    def failing() -> Iterator[Any]:
        yield from SAMPLES[:3]
        raise OWN

    fail(folder, failing())


def gone_on() -> Callable[[Path], Any]:
    def do(folder: Path) -> Any:
        model = FailsAt(OWN, at_pass=1)
        fail(folder, model=model, sites=["before"])
        return extract(folder, model=model, sites=["before"])["before"][:]

    return do


def half(folder: Path) -> Any:
    """What is read of a run that was interrupted."""
    fail(folder, model=FailsAt(OWN, at_pass=1), sites=["before"])
    return untyped.open_archive(folder / "acts")["before"]


def shard(folder: Path) -> Path:
    return next(iter((folder / "acts").glob("w-*/*.safetensors")))


def changed(folder: Path, change: Callable[[Path], object]) -> Any:
    """The archive of a run, one file of which was changed."""
    extract(folder)
    path = shard(folder)
    path.chmod(0o644)
    change(path)
    return untyped.open_archive(folder / "acts")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def without_meta(folder: Path) -> Any:
    extract(folder)
    (folder / "acts" / "meta.json").unlink()
    return untyped.open_archive(folder / "acts")


def meta_of(text: str) -> Callable[[Path], Any]:
    def do(folder: Path) -> Any:
        extract(folder)
        path = folder / "acts" / "meta.json"
        path.chmod(0o644)
        path.write_text(text)
        return untyped.open_archive(folder / "acts")

    return do


def moved(folder: Path) -> Any:
    extract(folder)
    shutil.move(folder / "acts", folder / "elsewhere")
    return untyped.open_archive(folder / "elsewhere")["norm"][:]


def with_file(folder: Path, name: str) -> Path:
    (folder / "acts").mkdir()
    (folder / "acts" / name).write_text("mine")
    return folder


def in_place_of_folder(folder: Path) -> Path:
    (folder / "acts").write_text("mine")
    return folder


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [
        {"input_ids": ids, "y": label}
        for ids, label in zip(make_ids(len(labels)), labels, strict=True)
    ]


def keep(samples: list[dict[str, Any]]) -> dict[str, Any]:
    ids = torch.stack([sample["input_ids"] for sample in samples])
    return {"input_ids": ids, "y": [sample["y"] for sample in samples]}


def with_labels(folder: Path, *labels: Any) -> Any:
    archive = extract(folder, labelled(*labels), columns=["y"], collate_fn=keep)
    return archive["label:y"][:]


def failing_commit(*_: Any) -> None:
    raise OWN


WRITING = [
    Case("a dataset without samples", lambda folder: extract(folder, [])),
    Case("a file in place of the folder", lambda folder: extract(in_place_of_folder(folder))),
    Case(
        "a folder with something else in it", lambda folder: extract(with_file(folder, "notes.txt"))
    ),
    Case(
        "a folder of `save_activations`",
        lambda folder: extract(
            save_activations({"norm": values()}, folder / "acts" / "a.npz").parent.parent
        ),
    ),
    Case(
        "`None` in place of the folder",
        lambda _: untyped.extract(LanguageModel(), SAMPLES, ["norm"], None),
    ),
    Case(
        "the dataset and the sites in the wrong order",
        lambda folder: untyped.extract(LanguageModel(), ["norm"], SAMPLES, folder / "acts"),
    ),
    Case("`rank=2` of two processes", lambda folder: extract(folder, rank=2, world_size=2)),
    Case("`world_size=0`", lambda folder: extract(folder, world_size=0)),
    Case("`check='all'`", lambda folder: extract(folder, check="all")),
    Case("`group_bytes=0`", lambda folder: extract(folder, group_bytes=0)),
    Case("`group_secs='1'`", lambda folder: extract(folder, group_secs="1")),
    Case("`columns='y'`", lambda folder: extract(folder, columns="y")),
    Case("a column that no sample has", lambda folder: extract(folder, columns=["y"])),
    Case("labels that are `None`", lambda folder: with_labels(folder, None, None, None)),
    Case(
        "labels that are texts, and one number",
        lambda folder: with_labels(folder, "a", "b", "c", 1),
    ),
    Case("labels that are ints, and one float", lambda folder: with_labels(folder, 1, 2, 3, 4.5)),
    Case(
        "a label that is half a surrogate pair",
        lambda folder: with_labels(folder, "\ud800", "b", "c"),
    ),
    Case(
        "an `on_commit` that raises",
        lambda folder: extract(folder, on_commit=failing_commit),
        own=OWN,
    ),
    Case(
        "an `on_commit` that cannot be called", lambda folder: extract(folder, on_commit="upload")
    ),
    Case(
        "complex values",
        lambda folder: extract(
            folder, model=WithOddModule(lambda acts: torch.complex(acts, acts)), sites=["odd"]
        ),
    ),
    Case(
        "a site that gives nothing",
        lambda folder: extract(folder, model=WithOddModule(lambda acts: None), sites=["odd"]),
    ),
    Case(
        "a site whose rows are not samples",
        lambda folder: extract(folder, model=PositionTable(), sites=["wpe"]),
    ),
    Case(
        "samples of another length in a later batch",
        lambda folder: extract(folder, [*make_samples(3, 5), *make_samples(3, 4)]),
    ),
]

CONTINUING = [
    Case("the same run again", lambda folder: twice(folder, {}), values, "What is there"),
    Case("another model", lambda folder: twice(folder, {"model": LanguageModel(seed=1)})),
    Case("another number of layers", lambda folder: twice(folder, {"model": LanguageModel(3)})),
    Case("other samples", lambda folder: twice(folder, {"data": make_samples(7, seed=1)})),
    Case("the samples in another order", lambda folder: twice(folder, {"data": SAMPLES[::-1]})),
    Case("more samples", lambda folder: twice(folder, {"data": make_samples(9)})),
    Case("other sites", lambda folder: twice(folder, {"sites": ["layers.0"]})),
    Case("another selection", lambda folder: twice(folder, {"positions": -1})),
    Case("another dtype", lambda folder: twice(folder, {"dtype": torch.float16})),
    Case("another batch size", lambda folder: twice(folder, {"batch_size": 2})),
    Case(
        "another number of workers",
        lambda folder: twice(folder, {"num_workers": 1}),
        values,
        "What is there: values do not depend on it",
    ),
    Case(
        "a run whose model failed half way, again",
        gone_on(),
        lambda: oracle(model=FailsAt(OWN, 99), sites=["before"], batch_size=3)["before"],
        "The samples that were missing are made",
    ),
    Case(
        "a generator, after a run that it failed",
        lambda folder: [stopped(folder), extract(folder, (each for each in SAMPLES))],
    ),
]

READING = [
    Case("a folder that does not exist", lambda folder: untyped.open_archive(folder / "acts")),
    Case("an empty folder", lambda folder: untyped.open_archive(folder)),
    Case("a file", lambda folder: untyped.open_archive(in_place_of_folder(folder) / "acts")),
    Case("a path that is `None`", lambda _: untyped.open_archive(None)),
    Case("an archive without its `meta.json`", without_meta),
    Case("a `meta.json` that is cut off", meta_of('{"format"')),
    Case("a `meta.json` of something else", meta_of("{}")),
    Case("a site that it does not have", lambda folder: extract(folder)["nrom"]),
    Case("a sample beyond the last", lambda folder: extract(folder)["norm"][7]),
    Case("a sample that is not there yet", lambda folder: half(folder)[5]),
    Case("all samples of a run that was interrupted", lambda folder: half(folder)[:]),
    Case("a list of samples", lambda folder: extract(folder)["norm"][[0, 1]]),
    Case("a sample by a float", lambda folder: extract(folder)["norm"][1.0]),
    Case(
        "the last sample, by `-1`",
        lambda folder: extract(folder)["norm"][-1],
        lambda: values()[-1],
        "The last",
    ),
    Case(
        "a slice beyond the end",
        lambda folder: extract(folder)["norm"][5:99],
        lambda: values()[5:],
        "Cropped, as Python does",
    ),
    Case("a shard that was deleted", lambda folder: changed(folder, Path.unlink)["norm"][0]),
    Case("a shard that was cut off", lambda folder: changed(folder, cut)["norm"][0]),
    Case(
        "a byte that has changed",
        lambda folder: [each.what for each in changed(folder, flipped).verify()],
        lambda: ["its bytes are not those that were written: the checksum differs"],
        "`verify` finds it",
    ),
    Case("an archive that was moved", moved, values, "Read where it is"),
]

GROUPS = {
    "Archives: writing": WRITING,
    "Archives: the folder of an earlier run": CONTINUING,
    "Archives: reading": READING,
}
