"""The loop without capture, fastcap, and the two loops that turn captured batches into one result.

A way is loaded once in its process. For each run it is first prepared, which is not timed, and then
called. Only fastcap makes the result itself; with the others the caller does, in one of two ways:

rows    into tensors of the final size, allocated before the first batch. Nobody's documentation
        does this; it is the best a careful caller can do, and what times are compared with.
lists   one list per site, concatenated at the end: what examples do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fastcap
from benchmarks.peers.questions import Question, batches, read_model

Values = dict[str, Tensor]
Batches = Iterator[tuple[slice, Sequence[Tensor]]]
"""Rows of the result, and what each site gave for them."""


def into_rows(question: Question, n_samples: int, found: Batches) -> Values:
    """Copies each batch into its rows of a result that exists already."""
    result: Values = {}
    for rows, values in found:
        for site, value in zip(question.sites, values, strict=True):
            if site not in result:
                result[site] = torch.empty((n_samples, *value.shape[1:]), dtype=value.dtype)
            result[site][rows] = value
    return result


def into_lists(question: Question, n_samples: int, found: Batches) -> Values:
    """Keeps every batch, and concatenates at the end."""
    parts: dict[str, list[Tensor]] = {site: [] for site in question.sites}
    for _, values in found:
        for site, value in zip(question.sites, values, strict=True):
            parts[site].append(value)
    return {site: torch.cat(of_site) for site, of_site in parts.items()}


Collect = Callable[[Question, int, Batches], Values]
COLLECTORS: Mapping[str, Collect] = MappingProxyType({"rows": into_rows, "lists": into_lists})


@dataclass(frozen=True, slots=True)
class Task:
    """One run that is to be prepared.

    Attributes:
        question: What is asked.
        token_ids: Of which samples.
        collect: What makes the result of captured batches.
        out: An empty folder, for a result on disk.
    """

    question: Question
    token_ids: Tensor
    collect: Collect
    out: Path

    def collected(self, capture: Callable[[Tensor], Sequence[Tensor]]) -> Callable[[], Values]:
        """A run that captures batch by batch."""

        @torch.no_grad()
        def run() -> Values:
            found = ((rows, capture(ids)) for rows, ids in batches(self.token_ids, self.question))
            return self.collect(self.question, len(self.token_ids), found)

        return run


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is ready to start.

    Attributes:
        capture: Does the work that is timed.
        model: The Hugging Face model whose forward passes `capture` makes.
        read: Turns what `capture` returned into tensors by site, where that is a folder.
    """

    capture: Callable[[], Values | Path]
    model: nn.Module
    read: Callable[[Path], Values] | None = None

    def values_of(self, outcome: Values | Path) -> Values:
        """Tensors, read back where the result is a folder."""
        if isinstance(outcome, Path):
            assert self.read is not None
            return self.read(outcome)
        return outcome


Prepare = Callable[[Task], Run]
BASELINE, FASTCAP = "baseline", "fastcap"
NNSIGHT, TRANSFORMER_LENS, SAE_LENS = "nnsight", "transformer-lens", "sae-lens"
PEERS = (NNSIGHT, TRANSFORMER_LENS, SAE_LENS)


def why_not(way: str, question: Question) -> str | None:
    """Why a way has no answer to a question, for the report; `None` where it has one."""
    if question.to_disk and way in (NNSIGHT, TRANSFORMER_LENS):
        return f"{way} writes no files: what to do with a tensor on disk is the caller's."
    if question.stop and way == SAE_LENS:
        return (
            "sae-lens ends passes early for the hook names of HookedTransformer only; those of "
            "a Hugging Face model run whole."
        )
    return None


def load_baseline(folder: Path) -> Prepare:
    model = read_model(folder)

    def prepare(task: Task) -> Run:
        @torch.no_grad()
        def capture() -> Values:
            for _, ids in batches(task.token_ids, task.question):
                model(input_ids=ids)
            return {}

        return Run(capture, model)

    return prepare


def load_fastcap(folder: Path) -> Prepare:
    model = read_model(folder)

    def prepare(task: Task) -> Run:
        question = task.question
        dataset = [{"input_ids": row} for row in task.token_ids]
        path = task.out / "acts.safetensors"

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
            fastcap.save_activations(extract(), path)
            return path

        return Run(write if question.to_disk else extract, model, load_file)

    return prepare


LOADERS: Mapping[str, Callable[[Path], Prepare]] = MappingProxyType(
    {BASELINE: load_baseline, FASTCAP: load_fastcap}
)
