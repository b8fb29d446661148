"""Models, and the names of their sites."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcap import ActivationStore
from tests.support.datasets import make_ids
from tests.support.mistakes.case import SAMPLES, Case, oracle, run, untyped
from tests.support.models import LanguageModel, PositionTable, SharedWeights


def by_module() -> Any:
    model = LanguageModel()
    return run(model=model, sites=[model.norm])


def scripted() -> Any:
    model: Any = LanguageModel()
    model.norm = torch.jit.script(nn.Linear(16, 16))
    return run(model=model)


def training() -> Any:
    model = nn.Sequential(nn.Embedding(32, 4), nn.Dropout(0.5)).train()
    return model, run(model=model, sites="1")["1"]


def in_eval_mode() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(32, 4), nn.Dropout(0.5)).eval()
    return model(torch.stack([sample["input_ids"] for sample in SAMPLES])).detach()


def after_pass(model: nn.Module, sites: Any, *args: Any, **options: Any) -> Any:
    with ActivationStore(model, sites, **options) as store:
        model(*(args or (make_ids(3),)))
    return store.activations


NAMES = [
    Case("a misspelt name, `layers.0.atention`", lambda _: run(sites=["layers.0.atention"])),
    Case("a name in capitals, `Norm`", lambda _: run(sites=["Norm"])),
    Case(
        "a prefix that the model does not have, `model.norm`", lambda _: run(sites=["model.norm"])
    ),
    Case("a block that is one too many, `layers.2`", lambda _: run(sites=["layers.2"])),
    Case("the name of a parameter, `norm.weight`", lambda _: run(sites=["norm.weight"])),
    Case("a space behind the name, `'norm '`", lambda _: run(sites=["norm "])),
    Case("a pattern that matches nothing, `layer.*`", lambda _: run(sites=["layer.*"])),
    Case("a pattern with an open brace, `layers.{0,1`", lambda _: run(sites=["layers.{0,1"])),
    Case("a range that runs backwards, `layers.{1..0}`", lambda _: run(sites=["layers.{1..0}"])),
    Case("one name and not a list, `'norm'`", lambda _: run(sites="norm"), oracle, "One site"),
    Case(
        "a tuple of names",
        lambda _: run(sites=("norm", "layers.0")),
        lambda: oracle(sites=["norm", "layers.0"]),
        "In the order given",
    ),
    Case(
        "a generator of names",
        lambda _: run(sites=(f"layers.{i}" for i in range(2))),
        lambda: oracle(sites=["layers.0", "layers.1"]),
        "In the order given",
    ),
    Case(
        "a name twice",
        lambda _: run(sites=["norm", "norm"]),
        oracle,
        "Once in the result, with one row per sample",
    ),
    Case(
        "a pattern, and a name it matches",
        lambda _: list(run(sites=["layers.1", "layers.*"])),
        lambda: ["layers.1", "layers.0"],
        "Each site once",
    ),
    Case(
        "a name with the part that is captured anyway, `norm:output`",
        lambda _: run(sites=["norm:output"]),
        oracle,
        "Under the name without the part",
    ),
    Case(
        "the empty name, `''`",
        lambda _: run(sites=[""]),
        lambda: oracle(sites=[""]),
        "The output of the whole model",
    ),
    Case("a module, `[model.norm]`", lambda _: by_module(), oracle, "Under the module's name"),
    Case("a module of another model", lambda _: run(sites=[LanguageModel().norm])),
    Case("a class of modules, `[nn.Linear]`", lambda _: run(sites=[nn.Linear])),
    Case("a number, `[0]`", lambda _: run(sites=[0])),
    Case("`None` among the names", lambda _: run(sites=["norm", None])),
    Case("no name, `[]`", lambda _: run(sites=[])),
    Case("`layers` left out", lambda _: run(sites=None)),
    Case(
        "`layers=` and `sites=`",
        lambda _: untyped.extract_representations(
            LanguageModel(), SAMPLES, layers=["norm"], sites=["norm"]
        ),
    ),
    Case("an unknown part, `norm:outputs`", lambda _: run(sites=["norm:outputs"])),
    Case("a part that is not closed, `norm:output[0`", lambda _: run(sites=["norm:output[0"])),
    Case(
        "a container that is never called, `layers`",
        lambda _: run(sites=["layers", "norm"]),
        oracle,
        "Left out",
    ),
    Case(
        "another name of a shared module",
        lambda _: after_pass(SharedWeights(), ["second"], calls="last"),
        lambda: {"second": shared_value()},
        "Under the name asked",
    ),
    Case(
        "a site whose rows are not samples, such as a table of positions",
        lambda _: run(model=PositionTable(), sites=["wpe"]),
    ),
]


def shared_value() -> Any:
    model = SharedWeights()
    return model(make_ids(3)).detach()


MODELS = [
    Case("a function and not a module", lambda _: run(model=len)),
    Case("a class and not an instance", lambda _: run(model=LanguageModel)),
    Case(
        "model and dataset in the wrong order",
        lambda _: untyped.extract_representations(SAMPLES, LanguageModel(), ["norm"]),
    ),
    Case(
        "a model without weights, on the meta device",
        lambda _: run(model=LanguageModel().to("meta")),
    ),
    Case("a site compiled by TorchScript", lambda _: scripted()),
    Case(
        "a model left in training mode",
        lambda _: training()[1],
        in_eval_mode,
        "As in eval mode; the flag is restored",
    ),
    Case(
        "a model in `DataParallel`, and names without `module.`",
        lambda _: run(model=nn.DataParallel(LanguageModel()), sites=["norm"]),
        oracle,
        "The module inside",
    ),
    Case("`list_sites` of a list", lambda _: untyped.list_sites([LanguageModel()])),
]

GROUPS = {"Names of sites": NAMES, "Models": MODELS}
