"""The ways that need no peer: the loop without capture, the oracle, and fastcap."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import fastcap
from benchmarks.peers.questions import Question, batches, read_model
from benchmarks.peers.ways import BASELINE, EAGER_ORACLE, FASTCAP, ORACLE, Prepare, Run, Values
from fastcap import reference
from fastcap.spec import make_selection


def load_baseline(folder: Path) -> Prepare:
    model = read_model(folder)

    def prepare(question: Question, token_ids: Tensor, *_: object) -> Run:
        @torch.no_grad()
        def capture() -> Values:
            for _, ids in batches(token_ids, question):
                _call(model, ids)
            return {}

        return Run(capture, model)

    return prepare


def load_oracle(folder: Path, attention: str) -> Prepare:
    model = read_model(folder, attention)

    def prepare(question: Question, token_ids: Tensor, *_: object) -> Run:
        def capture() -> Values:
            ids = (ids for _, ids in batches(token_ids, question))
            selection = make_selection(question.position)
            return reference.extract(model, ids, question.sites, _call, selection=selection)

        return Run(capture, model)

    return prepare


def load_fastcap(folder: Path) -> Prepare:
    model = read_model(folder)

    def prepare(question: Question, token_ids: Tensor, _: object, out: Path) -> Run:
        dataset = [{"input_ids": row} for row in token_ids]

        def extract() -> Values:
            return fastcap.extract_representations(
                model,
                dataset,
                question.sites,
                "cpu",
                question.batch_size,
                positions=question.position,
                stop_after_last_site="once" if question.stop else False,
            )

        def write() -> Path:
            fastcap.save_activations(extract(), out / "acts.safetensors")
            return out

        return Run(write if question.to_disk else extract, model, _read_safetensors)

    return prepare


def _read_safetensors(folder: Path) -> Values:
    from safetensors.torch import load_file

    values: Values = load_file(folder / "acts.safetensors")
    return values


def _call(model: nn.Module, ids: Tensor) -> object:
    return model(input_ids=ids)


LOADERS: dict[str, Callable[[Path], Prepare]] = {
    BASELINE: load_baseline,
    ORACLE: partial(load_oracle, attention="sdpa"),
    EAGER_ORACLE: partial(load_oracle, attention="eager"),
    FASTCAP: load_fastcap,
}
