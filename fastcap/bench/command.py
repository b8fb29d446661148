"""From the options of `fastcap bench` to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap import locate
from fastcap.bench import charts
from fastcap.bench.case import Case, make_case
from fastcap.bench.overhead import N_ROUNDS
from fastcap.bench.report import Report, make_report
from fastcap.errors import ArgumentError, FastcapError
from fastcap.spec import Positions


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked on the command line; `fastcap bench --help` explains each."""

    model: str
    sites: Sequence[str]
    example: str | None = None
    batch_size: int = 8
    tokens: int = 128
    inputs: Sequence[str] | None = None
    positions: str = "all"
    device: str | None = None
    rounds: int = N_ROUNDS
    passes: int | None = None
    disk: Path | None = None


def run_bench(question: Question, *, draws: bool, announce: Callable[[str], None]) -> Report:
    """Load the model and measure.

    Args:
        question: What to measure.
        draws: Whether pictures will be wanted of it.
        announce: Told a line after every round.

    Raises:
        ArgumentError: Something cannot be found, loaded or run; the message has the reason.
        MissingExtraError: matplotlib or transformers is needed and not installed.
    """
    if draws:
        charts.check_matplotlib()
    if not question.sites:
        raise ArgumentError(
            "Name what to capture, such as --sites 'layers.*'. The names are listed by: "
            f"fastcap sites {question.model}"
        )
    if question.disk is not None and not question.disk.is_dir():
        raise ArgumentError(f"--disk {str(question.disk)!r} is no folder. Name one that exists.")
    positions = parse_positions(question.positions)
    model = locate.load_model(question.model, with_weights=True)
    if question.device is not None:
        model = _move(model, question.device)
    batch = (
        locate.load_example(question.example)
        if question.example is not None
        else random_batch(model, question.batch_size, question.tokens)
    )
    case = make_case(model, [batch], question.sites, positions=positions, inputs=question.inputs)
    _try_once(case)

    def on_round(index: int, secs: Mapping[str, float]) -> None:
        shown = ", ".join(f"{way} {elapsed:.3f} s" for way, elapsed in secs.items())
        announce(f"round {index + 1}: {shown}")

    return make_report(
        question.model,
        case,
        rounds=question.rounds,
        passes=question.passes,
        folder=question.disk,
        on_round=on_round,
    )


def _move(model: nn.Module, device: str) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises the second
        raise ArgumentError(
            f"--device {device!r}: the model cannot be moved there: {locate.in_one_line(error)}."
        ) from error


def _try_once(case: Case) -> None:
    try:
        for _ in case.passes():
            pass
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on its batch failed with {locate.in_one_line(error)}."
        ) from error


def random_batch(model: nn.Module, batch_size: int, n_tokens: int) -> dict[str, Any]:
    """Token ids for a model whose configuration says how many there are.

    Raises:
        ArgumentError: It does not.
    """
    config = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise ArgumentError(
            "The model has no config.vocab_size to draw token ids from. Give a batch with "
            f"--example {locate.FORM}."
        )
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(vocab_size, (batch_size, n_tokens), generator=generator)}


def parse_positions(text: str) -> Positions:
    """`all`, a position, a slice or a list of positions.

    Example:
        >>> parse_positions("-1"), parse_positions("0:64"), parse_positions("0,5,-1")
        (-1, slice(0, 64, None), [0, 5, -1])

    Raises:
        ArgumentError: It is none of these.
    """
    try:
        if text == "all":
            return None
        if ":" in text:
            return slice(*(int(part) if part else None for part in text.split(":")))
        if "," in text:
            return [int(part) for part in text.split(",")]
        return int(text)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"--positions {text!r} is none of: all, -1, 0:64, 0,5,-1 (a position, a slice, a list)."
        ) from error
