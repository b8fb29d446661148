"""What is selected of a value, and values that are odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcap import ActivationStore
from tests.support.datasets import make_ids
from tests.support.mistakes.case import SAMPLES, Case, oracle, run
from tests.support.models import (
    HiddenOutput,
    HiddenPair,
    LanguageModel,
    Returning,
    SharedWeights,
    WithOddModule,
)

IDS = make_ids(3)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
OWN = ValueError("no such mean")


def raising(*_: Any) -> Any:
    raise OWN


def masked(mask: Tensor = MASK) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids, "attention_mask": row} for ids, row in zip(IDS, mask, strict=True)]


def run_masked(mask: Tensor = MASK, **options: Any) -> dict[str, Tensor]:
    return run(masked(mask), **{"model_inputs": ["attention_mask"], **options})


def by_hand(take: Callable[[Tensor, int], Tensor]) -> dict[str, Tensor]:
    """What is taken of each sample's tokens, one sample after the other."""
    whole = run_masked()["norm"]
    return {
        "norm": torch.stack(
            [take(acts, int(row.sum())) for acts, row in zip(whole, MASK, strict=True)]
        )
    }


MASKS = [
    Case("`positions='last'`, and no mask", lambda _: run(positions="last")),
    Case("`reduce='mean'`, and no mask", lambda _: run(reduce="mean")),
    Case(
        "`positions='last'`, and a mask",
        lambda _: run_masked(positions="last"),
        lambda: by_hand(lambda acts, length: acts[length - 1]),
        "The last real token of each sample",
    ),
    Case(
        "a mask of bools",
        lambda _: run_masked(MASK.bool(), positions="last"),
        lambda: by_hand(lambda acts, length: acts[length - 1]),
        "As for a mask of ints",
    ),
    Case(
        "a mask of floats",
        lambda _: run(masked(MASK.float()), positions="last", model_inputs=["attention_mask"]),
        lambda: by_hand(lambda acts, length: acts[length - 1]),
        "As for a mask of ints",
    ),
    Case(
        "padding that is not passed to the model",
        lambda _: run(masked()),
        lambda: oracle([{"input_ids": ids} for ids in IDS]),
        "As the model was called",
    ),
    Case("a mask whose row is all zeros", lambda _: run_masked(MASK * 0, positions="last")),
    Case(
        "a mask with a hole in its values, such as 2",
        lambda _: run_masked(MASK * 2, positions="last"),
    ),
    Case(
        "a mask of four dimensions",
        lambda _: run(positions="last", mask=lambda batch: torch.ones(7, 1, 5, 5)),
    ),
    Case(
        "a mask that is too short",
        lambda _: run(positions="last", mask=lambda batch: torch.ones(7, 4)),
    ),
    Case(
        "a mask of too few samples",
        lambda _: run(positions="last", mask=lambda batch: torch.ones(3, 5)),
    ),
    Case(
        "a mask that is a list", lambda _: run(positions="last", mask=lambda batch: [[1] * 5] * 7)
    ),
    Case(
        "a `mask=` that returns nothing", lambda _: run(positions="last", mask=lambda batch: None)
    ),
    Case("a `mask=` that raises", lambda _: run(positions="last", mask=raising), own=OWN),
    Case("a tensor as `mask=`, for a run over batches", lambda _: run(positions="last", mask=MASK)),
    Case("a `mask=` that nothing uses", lambda _: run(mask=lambda batch: MASK)),
    Case("`positions='unpadded'`, for one result", lambda _: run_masked(positions="unpadded")),
    Case(
        "a store and a module called on its own",
        lambda _: alone(),
    ),
]


def alone() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"], positions="last"):
        model.norm(torch.ones(3, 5, 16))


SELECTIONS = [
    Case("a position beyond the sequence, `positions=5` of 5", lambda _: run(positions=5)),
    Case("`positions=-6` of 5", lambda _: run(positions=-6)),
    Case("a list with a position beyond the sequence", lambda _: run(positions=[0, 9])),
    Case(
        "a slice beyond the sequence, `slice(3, 99)`",
        lambda _: run(positions=slice(3, 99)),
        lambda: oracle(positions=slice(3, 99)),
        "Cropped, as Python does",
    ),
    Case(
        "an empty slice, `slice(3, 3)`",
        lambda _: run(positions=slice(3, 3)),
        lambda: oracle(positions=slice(3, 3)),
        "No positions",
    ),
    Case(
        "an empty list, `positions=[]`",
        lambda _: run(positions=[]),
        lambda: oracle(positions=[]),
        "No positions",
    ),
    Case("a slice that runs backwards", lambda _: run(positions=slice(None, None, -1))),
    Case(
        "a position twice, `[0, 0]`",
        lambda _: run(positions=[0, 0]),
        lambda: oracle(positions=[0, 0]),
        "Twice",
    ),
    Case(
        "a tensor of positions",
        lambda _: run(positions=torch.tensor([0, 2])),
        lambda: oracle(positions=[0, 2]),
        "As for a list",
    ),
    Case(
        "a range",
        lambda _: run(positions=range(2)),
        lambda: oracle(positions=[0, 1]),
        "As for a list",
    ),
    Case("`positions=1.5`", lambda _: run(positions=1.5)),
    Case("`positions=True`", lambda _: run(positions=True)),
    Case("a list of bools", lambda _: run(positions=[True, False, True, True, True])),
    Case("`positions='first'`", lambda _: run(positions="first")),
    Case(
        "a list of positions for each sample, to one that has others",
        lambda _: run(positions=[[0], [1]]),
    ),
    Case("lists of several lengths, one per sample", lambda _: run(positions=[[0], [1, 2]])),
    Case(
        "a key of the batch that holds floats",
        lambda _: run([{**s, "at": 1.0} for s in SAMPLES], positions="at"),
    ),
    Case(
        "a position in a value that has no sequence",
        lambda _: run(model=pooled(), sites=["odd"], positions=-1),
    ),
    Case("`seq_dim='1'`", lambda _: run(positions=0, seq_dim="1")),
    Case("`seq_dim=7`", lambda _: run(positions=0, seq_dim=7)),
    Case("`seq_dim=0`, the samples", lambda _: run(positions=0, seq_dim=0)),
    Case("`batch_dim='1'`", lambda _: run(batch_dim="1")),
    Case("`batch_dim=7`", lambda _: run(batch_dim=7)),
    Case("`batch_dim=1`, the tokens", lambda _: run(batch_dim=1)),
    Case("a sequence-first module", lambda _: run(model=sequence_first(), sites=["odd"])),
    Case(
        "a sequence-first module and `batch_dim=1`",
        lambda _: run(model=sequence_first(), sites=["odd"], batch_dim=1)["odd"],
        lambda: run(model=sequence_first(), sites=["embedding"])["embedding"],
        "Samples first",
    ),
    Case(
        "a sequence-first module, and as many samples as tokens",
        lambda _: run(SAMPLES[:5], model=sequence_first(), sites=["odd"]),
    ),
    Case(
        "as many samples as tokens, where samples are first",
        lambda _: run(SAMPLES[:5]),
        lambda: oracle(SAMPLES[:5]),
        "As for any other number",
    ),
    Case("`reduce='max'`", lambda _: run(reduce="max")),
    Case("`reduce=torch.mean`, of everything", lambda _: run(reduce=torch.mean)),
    Case("a `reduce` that raises", lambda _: run(reduce=raising), own=OWN),
    Case("a `reduce` that returns a list", lambda _: run(reduce=lambda acts: acts.tolist())),
    Case("a `reduce` that returns a tuple", lambda _: run(reduce=lambda acts: acts.max(dim=1))),
    Case("a `reduce` that returns nothing", lambda _: run(reduce=lambda acts: None)),
    Case(
        "a `reduce` that averages over samples", lambda _: run(reduce=lambda acts: acts.mean(dim=0))
    ),
    Case(
        "a `reduce` that changes the value in place",
        lambda _: run(sites=["layers.0", "norm"], reduce=lambda acts: acts.mul_(0))["norm"],
        lambda: torch.zeros(7, 5, 16),
        "The model goes on with it: it is the model's own tensor",
    ),
    Case("`reduce='mean'` and `positions=`", lambda _: run_masked(reduce="mean", positions=-1)),
]


def sequence_first() -> nn.Module:
    return WithOddModule(lambda acts: acts.transpose(0, 1))


def pooled() -> nn.Module:
    return WithOddModule(lambda acts: acts.sum(dim=(1, 2)))


DTYPES = [
    Case("`dtype='float16'`", lambda _: run(dtype="float16")),
    Case("`dtype=float`", lambda _: run(dtype=float)),
    Case("`dtype=torch.int8`, of floats", lambda _: run(dtype=torch.int8)),
    Case(
        "`dtype=torch.float32`, of complex values",
        lambda _: run(model=complex_values(), sites=["odd"], dtype=torch.float32),
    ),
    Case(
        "`dtype=torch.float64`, of float32",
        lambda _: run(dtype=torch.float64),
        lambda: oracle(dtype=torch.float64),
        "Widened, exactly",
    ),
    Case(
        "a model in bfloat16",
        lambda _: run(model=LanguageModel().bfloat16()),
        lambda: oracle(model=LanguageModel().bfloat16()),
        "In bfloat16, as it is",
    ),
    Case("`device='cuda'`, and a model on the CPU", lambda _: run(device="cuda")),
    Case("`device='meta'`, and a model on the CPU", lambda _: run(device="meta")),
    Case("`device='gpu'`", lambda _: run(device="gpu")),
    Case("`device=1.5`", lambda _: run(device=1.5)),
    Case(
        "`device=None`",
        lambda _: run(device=None),
        oracle,
        "Where the model is",
    ),
    Case("`staging_bytes='1 GiB'`", lambda _: run(staging_bytes="1 GiB")),
    Case("`pinned_bytes=0`", lambda _: run(pinned_bytes=0)),
]


def complex_values() -> nn.Module:
    return WithOddModule(lambda acts: torch.complex(acts, acts))


def odd(make: Callable[[Tensor], Any], site: str = "odd") -> Any:
    return run(model=WithOddModule(make), sites=[site, "head"])


def head() -> Any:
    return oracle(model=WithOddModule(lambda acts: acts), sites=["head"])


def embedded(site: str = "odd") -> Any:
    """The odd module's value, where it returns its input; and the head's."""
    found = oracle(model=WithOddModule(lambda acts: acts), sites=["odd", "head"])
    return {site: found["odd"], "head": found["head"]}


def nested(acts: Tensor) -> Tensor:
    return torch.nested.nested_tensor([row[: 1 + i % 3] for i, row in enumerate(acts)])


def padded() -> Any:
    found = embedded()
    for i, row in enumerate(found["odd"]):
        row[1 + i % 3 :] = 0
    return {**found, "odd": found["odd"][:, :3]}


def jagged(acts: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(acts), layout=torch.jagged)


def fake() -> Any:
    model = Returning(lambda acts: acts * 2)
    with ActivationStore(model, [""]) as store, FakeTensorMode():
        model(torch.ones(2, 3))
    return store.activations


def strange_vmap() -> None:
    model = Returning(lambda acts: acts * 2)
    with ActivationStore(model, [""]):
        torch.func.vmap(model)(torch.ones(2, 2))


class Sometimes(nn.Module):
    """Calls `odd` in the first batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 4)
        self.odd = nn.Identity()
        self.n_passes = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.n_passes += 1
        acts: Tensor = self.embedding(ids)
        if self.n_passes == 1:
            self.odd(acts)
        return acts


def in_place() -> Any:
    model: Any = nn.Sequential(nn.Embedding(32, 4), nn.ReLU(inplace=True))
    torch.manual_seed(0)
    model[0].reset_parameters()
    return model


def in_turns() -> nn.Module:
    dtypes = [torch.float32, torch.float64, torch.float32]
    return WithOddModule(lambda acts: acts.to(dtypes.pop(0)))


OUTPUTS = [
    Case(
        "a tuple led by a tensor",
        lambda _: odd(lambda acts: (acts, 1)),
        embedded,
        "Its first element",
    ),
    Case(
        "a named tuple",
        lambda _: odd(lambda acts: HiddenPair(acts, "label")),
        embedded,
        "Its first element",
    ),
    Case("an empty tuple", lambda _: odd(lambda acts: ()), head, "Left out"),
    Case("a tuple led by `None`", lambda _: odd(lambda acts: (None, acts)), head, "Left out"),
    Case(
        "the same, and `odd:output[1]`",
        lambda _: odd(lambda acts: (None, acts), "odd:output[1]"),
        lambda: embedded("odd:output[1]"),
        "The part",
    ),
    Case("a list", lambda _: odd(lambda acts: [acts]), head, "Left out"),
    Case("a dict", lambda _: odd(lambda acts: {"hidden": acts}), head, "Left out"),
    Case(
        "a dict, and a part that it does not have",
        lambda _: odd(lambda acts: {"hidden": acts}, "odd:output[hiden]"),
        head,
        "Left out",
    ),
    Case("a dataclass", lambda _: odd(HiddenOutput), head, "Left out"),
    Case(
        "a dataclass, and `odd:output.last_hidden_state`",
        lambda _: odd(HiddenOutput, "odd:output.last_hidden_state"),
        lambda: embedded("odd:output.last_hidden_state"),
        "The part",
    ),
    Case("`None`", lambda _: odd(lambda acts: None), head, "Left out"),
    Case("a number", lambda _: odd(lambda acts: 3), head, "Left out"),
    Case("a sparse tensor", lambda _: odd(lambda acts: acts[0].to_sparse())),
    Case("a nested tensor", lambda _: odd(nested), padded, "Padded with zeros"),
    Case("a jagged one", lambda _: odd(jagged), embedded, "Padded with zeros"),
    Case(
        "a quantised tensor",
        lambda _: odd(lambda acts: torch.quantize_per_tensor(acts, 0.1, 0, torch.qint8)),
    ),
    Case("a tensor on the meta device", lambda _: odd(lambda acts: acts.to("meta"))),
    Case("a fake tensor", lambda _: fake(), dict, "Nothing is captured"),
    Case("a value inside `vmap`", lambda _: strange_vmap()),
    Case("a number per batch, `acts.sum()`", lambda _: odd(lambda acts: acts.sum())),
    Case(
        "a tensor that is transposed",
        lambda _: odd(lambda acts: acts.transpose(1, 2)),
        lambda: {"odd": embedded()["odd"].transpose(1, 2).contiguous(), "head": embedded()["head"]},
        "As it is, contiguous",
    ),
    Case(
        "an output without rows",
        lambda _: odd(lambda acts: acts[:, :0]),
        lambda: {"odd": embedded()["odd"][:, :0], "head": embedded()["head"]},
        "As it is",
    ),
    Case(
        "an output that needs gradients, and is a parameter",
        lambda _: odd(lambda acts: nn.Parameter(acts)),
        embedded,
        "A plain tensor",
    ),
    Case(
        "an output that the next module overwrites",
        lambda _: run(model=in_place(), sites=["0"]),
        lambda: {"0": in_place()[0](torch.stack([s["input_ids"] for s in SAMPLES])).detach()},
        "As it was when the module returned it",
    ),
    Case(
        "a dtype that changes between batches",
        lambda _: run(model=in_turns(), sites=["odd"], batch_size=3),
    ),
    Case(
        "a site that is called in some batches only",
        lambda _: run(model=Sometimes(), sites=["embedding", "odd"], batch_size=3),
    ),
]


def twice(**options: Any) -> ActivationStore:
    model = SharedWeights()
    with ActivationStore(model, ["first"], **options) as store:
        model(IDS)
    return store


def of_two_calls() -> list[Tensor]:
    model = SharedWeights()
    first = model.first(model.embedding(IDS))
    return [first.detach(), model.first(first.relu()).detach()]


CALLS = [
    Case(
        "a module that is called twice per pass",
        lambda _: twice().get("first"),
        lambda: of_two_calls()[1],
        "The last call",
    ),
    Case(
        "the same, and `calls='last'`",
        lambda _: twice(calls="last").get("first"),
        lambda: of_two_calls()[1],
        "The last call",
    ),
    Case(
        "the same, and `calls='all'`",
        lambda _: twice(calls="all").calls("first"),
        of_two_calls,
        "Every call",
    ),
    Case("`calls='first'`", lambda _: twice(calls="first")),
    Case("`calls=2`", lambda _: twice(calls=2)),
    Case(
        "`first@0`, of a module that is called twice",
        lambda _: run(
            model=SharedWeights(), sites=["first@0"], data=[{"input_ids": ids} for ids in IDS]
        )["first@0"],
        lambda: of_two_calls()[0],
        "The first call",
    ),
    Case(
        "`first@5`, of a module that is called twice",
        lambda _: run(model=SharedWeights(), sites=["first@5", "embedding"]),
        lambda: oracle(model=SharedWeights(), sites=["embedding"]),
        "Left out",
    ),
    Case(
        "a result of a module that is called twice",
        lambda _: run(
            model=SharedWeights(), sites=["first"], data=[{"input_ids": ids} for ids in IDS]
        )["first"],
        lambda: of_two_calls()[1],
        "The last call",
    ),
]

GROUPS = {
    "Masks and padding": MASKS,
    "Positions and reduce": SELECTIONS,
    "Dtypes, devices and memory": DTYPES,
    "Outputs of modules": OUTPUTS,
    "Several calls per pass": CALLS,
}
