"""Datasets, samples, and how they become batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    Subset,
    TensorDataset,
    get_worker_info,
)

from tests.support.datasets import LyingStream, Tokens, TokenStream, make_ids, make_samples
from tests.support.mistakes.case import SAMPLES, Case, oracle, run, untyped
from tests.support.models import LanguageModel

IDS = make_ids(7)
OWN = OSError("the file went away")


class TooLong(Tokens):
    """Says that it has more samples than it gives, and raises what its owner raises."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= 7:
            raise OWN
        return super().__getitem__(index)


class SharedOut(TokenStream):
    """Every worker gives samples of its own."""

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        return iter(self.samples[worker.id :: worker.num_workers] if worker else self.samples)


class Everything(TokenStream):
    """Every worker gives every sample, as a dataset that never asks which worker it is."""


class Image:
    """Looks like an image of PIL."""

    def getbands(self) -> tuple[str, ...]:
        return ("R", "G", "B")


class Table:
    """Looks like a table of pandas."""

    iloc = ()
    columns = ("input_ids",)

    def __getitem__(self, key: str) -> Any:
        return [1]

    def __len__(self) -> int:
        return 1


class Plain:
    """Nothing that a batch can hold."""


class Pair(NamedTuple):
    """A sample with named parts."""

    input_ids: Tensor
    attention_mask: Tensor


def ragged() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids[: 5 - index % 2]} for index, ids in enumerate(IDS)]


of_one: Any = lambda batch: batch  # noqa: E731


def with_extra(value: Any) -> list[dict[str, Any]]:
    return [{**sample, "extra": value} for sample in SAMPLES]


def raising(*_: Any) -> Any:
    raise OWN


def shuffled() -> Any:
    """The rows of a shuffled loader are those of its own order."""
    torch.manual_seed(3)
    loader = DataLoader(Tokens(7), batch_size=3, shuffle=True)
    rows = run(loader)["norm"]
    return rows.sort(dim=0).values


DATASETS = [
    Case("an empty list", lambda _: run([]), dict, "An empty result"),
    Case("`None`", lambda _: untyped.extract_representations(LanguageModel(), None, ["norm"])),
    Case("a number", lambda _: run(7)),
    Case("one text", lambda _: run("some text")),
    Case("the path of a file, as a string", lambda _: run("texts.jsonl")),
    Case("a path", lambda folder: run(folder / "texts.jsonl")),
    Case("a table of pandas", lambda _: run(Table())),
    Case("a set of texts", lambda _: run({"one"})),
    Case(
        "a dict of columns",
        lambda _: run({"input_ids": IDS}),
        oracle,
        "Its rows are the samples",
    ),
    Case(
        "a dict of columns that are lists",
        lambda _: run({"input_ids": IDS.tolist()}),
        oracle,
        "Its rows are the samples",
    ),
    Case(
        "a dict of columns of several lengths",
        lambda _: run({"input_ids": IDS, "label": [0, 1]}),
    ),
    Case("a dict of splits", lambda _: run({"train": Tokens(7), "test": Tokens(7)})),
    Case("a dict that is one sample", lambda _: run({"input_ids": IDS[0], "text": "one"})),
    Case("an empty dict", lambda _: run({})),
    Case("a tensor of ids", lambda _: run(IDS), oracle, "Its rows are the samples"),
    Case(
        "an array of ids",
        lambda _: run(IDS.numpy()),
        oracle,
        "Its rows are the samples",
    ),
    Case(
        "a `TensorDataset`, whose samples are tuples of one",
        lambda _: run(TensorDataset(IDS)),
        oracle,
        "The tensor is what the model is called with",
    ),
    Case(
        "a `Subset` in another order",
        lambda _: run(Subset(Tokens(7), [6, 0, 3])),
        lambda: oracle([SAMPLES[6], SAMPLES[0], SAMPLES[3]]),
        "Rows in the order of the subset",
    ),
    Case(
        "a generator",
        lambda _: run(sample for sample in SAMPLES),
        oracle,
        "A row for each of its samples",
    ),
    Case(
        "a generator, and two workers",
        lambda _: run((sample for sample in SAMPLES), num_workers=2),
    ),
    Case("a generator that is exhausted", lambda _: run(iter([])), dict, "An empty result"),
    Case(
        "an `IterableDataset` shared out among two workers",
        lambda _: run(SharedOut(8), batch_size=2, num_workers=2),
        lambda: oracle([make_samples(8)[i] for i in (0, 2, 1, 3, 4, 6, 5, 7)], batch_size=2),
        "Rows in the order of the workers",
    ),
    Case(
        "the same for an archive",
        lambda folder: untyped.extract(
            LanguageModel(), Everything(8), ["norm"], folder, num_workers=2
        ),
    ),
    Case(
        "an `IterableDataset` that says it has more samples than it gives",
        lambda _: run(LyingStream(7, reported=9), batch_size=3),
        lambda: oracle(batch_size=3),
        "A row for each sample it gives",
    ),
    Case(
        "an `IterableDataset` that says it has fewer",
        lambda _: run(LyingStream(7, reported=4), batch_size=3),
        lambda: oracle(batch_size=3),
        "A row for each sample it gives",
    ),
    Case(
        "a dataset whose `__len__` is too large, and whose `__getitem__` raises",
        lambda _: run(TooLong(7)),
        own=OWN,
    ),
    Case("a dataset that raises in a generator", lambda _: run(map(raising, [1])), own=OWN),
    Case(
        "a `DataLoader` that shuffles",
        lambda _: shuffled(),
        lambda: oracle(batch_size=3)["norm"].sort(dim=0).values,
        "Rows in the loader's order",
    ),
    Case(
        "a `DataLoader` that shuffles, for an archive",
        lambda folder: untyped.extract(
            LanguageModel(), DataLoader(Tokens(7), shuffle=True), ["norm"], folder
        ),
    ),
    Case(
        "a `DataLoader`, and another `batch_size=`",
        lambda _: run(DataLoader(Tokens(7), batch_size=3), batch_size=4),
    ),
    Case(
        "a `DataLoader` with `drop_last`",
        lambda _: run(DataLoader(Tokens(7), batch_size=3, drop_last=True)),
        lambda: oracle(SAMPLES[:6], batch_size=3),
        "No rows of the batch that it drops",
    ),
    Case(
        "a `DataLoader` with a sampler of its own",
        lambda _: len(
            run(DataLoader(Tokens(7), sampler=RandomSampler(range(7), num_samples=3)))["norm"]
        ),
        lambda: 3,
        "As many rows as it draws",
    ),
    Case(
        "an iterator over a `DataLoader`",
        lambda _: run(iter(DataLoader(Tokens(7), batch_size=3))),
    ),
    Case("batches in place of samples", lambda _: run([{"input_ids": IDS}, {"input_ids": IDS}])),
    Case("`batch_size=0`", lambda _: run(batch_size=0)),
    Case("`batch_size=2.5`", lambda _: run(batch_size=2.5)),
    Case("`batch_size=None`", lambda _: run(batch_size=None)),
    Case("`max_samples=0`", lambda _: run(max_samples=0)),
    Case("`max_samples=-1`", lambda _: run(max_samples=-1)),
    Case(
        "`max_samples=100`, of 7",
        lambda _: run(max_samples=100),
        oracle,
        "All samples",
    ),
    Case(
        "`max_samples=4`, in batches of 3",
        lambda _: run(max_samples=4, batch_size=3),
        lambda: oracle(batch_size=3, max_samples=4),
        "The last batch runs whole and is cropped",
    ),
    Case("`num_workers=-1`", lambda _: run(num_workers=-1)),
    Case("`progress='yes'`", lambda _: run(progress="yes")),
]

IN_SAMPLES = [
    Case("ids of several lengths in one batch", lambda _: run(ragged())),
    Case(
        "the same, one sample a batch, and one position of each",
        lambda _: run(ragged(), batch_size=1, positions=-1),
        lambda: oracle(ragged(), batch_size=1, positions=-1),
        "A row for each sample",
    ),
    Case("ids of several lengths, one sample a batch", lambda _: run(ragged(), batch_size=1)),
    Case(
        "ids as a tokenizer returns them for one text, `(1, n)`",
        lambda _: run([{"input_ids": ids[None]} for ids in IDS]),
    ),
    Case("ids that are lists", lambda _: run([{"input_ids": ids.tolist()} for ids in IDS])),
    Case(
        "ids that are lists of several lengths",
        lambda _: run([{"input_ids": s["input_ids"].tolist()} for s in ragged()]),
    ),
    Case(
        "ids that are arrays",
        lambda _: run([{"input_ids": ids.numpy()} for ids in IDS]),
        oracle,
        "As for tensors",
    ),
    Case(
        "ids that are int32",
        lambda _: run([{"input_ids": ids.int()} for ids in IDS]),
        oracle,
        "As for int64",
    ),
    Case("ids that are uint8", lambda _: run([{"input_ids": ids.byte()} for ids in IDS])),
    Case(
        "ids that are floats",
        lambda _: run([{"input_ids": ids.float()} for ids in IDS]),
        bare=lambda: LanguageModel()(IDS.float()),
    ),
    Case(
        "ids that are bools",
        lambda _: run([{"input_ids": ids > 3} for ids in IDS]),
        bare=lambda: LanguageModel()(IDS > 3),
    ),
    Case("ids that are single numbers", lambda _: run([{"input_ids": 3}] * 3)),
    Case("ids that are texts", lambda _: run([{"input_ids": "one two"}] * 3)),
    Case("ids that are `None`", lambda _: run([{"input_ids": None}] * 3)),
    Case("samples that are `None`", lambda _: run([None, None])),
    Case("one sample that is `None`", lambda _: run([SAMPLES[0], None])),
    Case("samples that are texts", lambda _: run(["one", "two"])),
    Case("samples that are numbers", lambda _: run([1, 2, 3])),
    Case("samples without `input_ids`", lambda _: run([{"ids": ids} for ids in IDS])),
    Case("samples with different keys", lambda _: run([{**SAMPLES[0], "label": 1}, SAMPLES[1]])),
    Case(
        "samples of which a later one has more keys",
        lambda _: run([SAMPLES[0], {**SAMPLES[1], "label": 1}]),
        lambda: oracle(SAMPLES[:2]),
        "The keys of the first sample",
    ),
    Case("samples with an image of PIL", lambda _: run(with_extra(Image()))),
    Case("samples with a `None` among other keys", lambda _: run(with_extra(None))),
    Case("samples with an object of a class of one's own", lambda _: run(with_extra(Plain()))),
    Case(
        "samples with texts among other keys",
        lambda _: run(with_extra("text")),
        oracle,
        "Only the ids are passed to the model",
    ),
    Case(
        "samples with lists of several lengths",
        lambda _: run([{**s, "extra": [1] * (i % 2)} for i, s in enumerate(SAMPLES)]),
    ),
    Case("samples without a token", lambda _: run([{"input_ids": IDS[0, :0]}] * 3, positions=-1)),
    Case("tuples of two tensors, unnamed", lambda _: run([(ids, ids * 0 + 1) for ids in IDS])),
    Case(
        "tuples of two tensors, the second named in `model_inputs=`",
        lambda _: run(
            [(ids, ids * 0 + 1) for ids in IDS], model_inputs=["input_ids", "attention_mask"]
        ),
        oracle,
        "Each is passed under its name",
    ),
    Case(
        "named tuples",
        lambda _: run(
            [Pair(ids, ids * 0 + 1) for ids in IDS], model_inputs=["input_ids", "attention_mask"]
        ),
        oracle,
        "Each is passed under its name",
    ),
    Case(
        "ids beyond the vocabulary",
        lambda _: run([{"input_ids": ids + 1000} for ids in IDS]),
        bare=lambda: LanguageModel()(IDS + 1000),
    ),
    Case(
        "negative ids, such as -100",
        lambda _: run([{"input_ids": ids * 0 - 100} for ids in IDS]),
        bare=lambda: LanguageModel()(IDS * 0 - 100),
    ),
]


def stacked(samples: list[Any]) -> dict[str, Tensor]:
    return {"input_ids": torch.stack([sample["input_ids"] for sample in samples])}


def keeps(name: str) -> Any:
    return lambda samples: {**stacked(samples), name: [sample["input_ids"] for sample in samples]}


COLLATION = [
    Case("a `collate_fn` that raises", lambda _: run(collate_fn=raising), own=OWN),
    Case("a `collate_fn` that cannot be called", lambda _: run(collate_fn="stack")),
    Case("a `collate_fn` that returns nothing", lambda _: run(collate_fn=lambda samples: None)),
    Case(
        "a `collate_fn` that returns the samples", lambda _: run(collate_fn=lambda samples: samples)
    ),
    Case("a `collate_fn` that returns a text", lambda _: run(collate_fn=lambda samples: "text")),
    Case(
        "a `collate_fn` that returns lists of ids",
        lambda _: run(
            collate_fn=lambda samples: {"input_ids": [s["input_ids"].tolist() for s in samples]}
        ),
    ),
    Case(
        "a `collate_fn` that drops a sample",
        lambda _: run(batch_size=3, collate_fn=lambda samples: stacked(samples[1:] or samples)),
        lambda: oracle([SAMPLES[index] for index in (1, 2, 4, 5, 6)], batch_size=2),
        "The rows of the batches",
    ),
    Case(
        "a `collate_fn` that drops a sample, for an archive",
        lambda folder: untyped.extract(
            LanguageModel(),
            SAMPLES,
            ["norm"],
            folder / "acts",
            collate_fn=lambda samples: stacked(samples[1:]),
        ),
    ),
    Case(
        "a `collate_fn` that gives a tensor of its own rank",
        lambda _: run(collate_fn=lambda samples: stacked(samples)["input_ids"]),
        oracle,
        "It is what the model is called with",
    ),
    Case(
        "a `collate_fn`, and a `DataLoader`",
        lambda _: run(DataLoader(Tokens(7)), collate_fn=stacked),
    ),
    Case(
        "batches that refill one buffer",
        lambda _: refilled(),
        lambda: [each["norm"] for each in expected_batches()],
        "Values and batches of their own time",
    ),
]


def expected_batches() -> list[dict[str, Tensor]]:
    return [oracle(SAMPLES[start : start + 2], batch_size=2) for start in (0, 2, 4)]


def refilled() -> Any:
    buffer = torch.empty(2, 5, dtype=torch.int64)

    def batches() -> Iterator[Tensor]:
        for start in (0, 2, 4):
            yield buffer.copy_(IDS[start : start + 2])

    return [records["norm"] for records in untyped.stream(LanguageModel(), batches(), ["norm"])]


INPUTS = [
    Case("`model_inputs` as one string", lambda _: run(model_inputs="attention_mask")),
    Case("`model_inputs` that no batch has", lambda _: run(model_inputs=["attention_mask"])),
    Case("`model_inputs` that are numbers", lambda _: run(model_inputs=[1])),
    Case(
        "an input that the model does not take",
        lambda _: run(with_extra(torch.ones(1)), model_inputs=["extra"]),
        bare=lambda: LanguageModel()(IDS, extra=torch.ones(1)),
    ),
    Case("a `forward` that is a text", lambda _: run(forward="model(**batch)")),
    Case("a `forward` that raises", lambda _: run(forward=raising), own=OWN),
    Case("a `forward` of one argument", lambda _: run(forward=of_one), bare=lambda: of_one(1, 2)),
    Case(
        "a `forward` that never calls the model",
        lambda _: run(forward=lambda model, batch: None),
        dict,
        "An empty result",
    ),
    Case(
        "a `forward` that calls the model twice",
        lambda _: run(
            forward=lambda model, batch: [model(batch["input_ids"] * 0), model(batch["input_ids"])]
        ),
        oracle,
        "The last call",
    ),
    Case(
        "a batch that is a text, to `stream`",
        lambda _: next(untyped.stream(LanguageModel(), ["text"], ["norm"])),
    ),
    Case(
        "a tensor in place of batches, to `stream`",
        lambda _: next(untyped.stream(LanguageModel(), IDS, ["norm"])),
    ),
    Case(
        "`None` in place of batches, to `stream`",
        lambda _: untyped.stream(LanguageModel(), None, ["norm"]),
    ),
    Case(
        "one batch in place of batches, to `stream`",
        lambda _: next(untyped.stream(LanguageModel(), {"input_ids": IDS}, ["norm"])),
    ),
    Case(
        "`prefetch=-1`, to `stream`",
        lambda _: untyped.stream(LanguageModel(), [], ["norm"], prefetch=-1),
    ),
]

GROUPS = {
    "Datasets": DATASETS,
    "Samples": IN_SAMPLES,
    "Collation": COLLATION,
    "Inputs of the model": INPUTS,
}
