"""What a user did, what came of it, and how that is judged."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fastcap
from fastcap import FastcapError, FastcapWarning, extract_representations
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.datasets import expected, make_samples
from tests.support.models import LanguageModel

untyped: Any = fastcap
"""For calls whose arguments have other types on purpose."""

SAMPLES = make_samples(7)
QUIET = re.compile("prototype|beta state|deprecated")
"""What torch says of the odd tensors that some cases make."""

SHORTENED = (
    (r"\[[^\]]{80,}\](\.\.\.)?", "[...]"),  # names of modules
    (r"\b(?=[a-f]*\d)[0-9a-f]{8,64}\b", "HASH"),
    (r"^Error: .*", "Error: ..."),  # of the library that reads the command line
    (r"(is not a valid safetensors file: ).*", r"\1..."),
    (r"(cannot be read as \.npy: ).*", r"\1..."),
    (r"(Cannot load the tokenizer of [^:]*: ).*(The folder holds)", r"\1... \2"),
    (r"This (TokenizersBackend|PreTrainedTokenizerFast)", "This TOKENIZER"),
)
"""What is long, or in the words of another library, and what the table has instead."""


@dataclass(frozen=True)
class Case:
    """One mistake, or an input that is only odd.

    Args:
        mistake: What the user did, in Markdown.
        do: Does it, given an empty folder.
        right: The value it has to give where it gives one, made in another way.
        meant: What that value is, in words.
        own: The very error that the user's own code raises.
        bare: Does the same without fastcap, where the user's own code raises an equal error.
        system: The error of the operating system that the docs promise.
        needs: A package that may be absent.
    """

    mistake: str
    do: Callable[[Path], object]
    right: Callable[[], object] | None = None
    meant: str = ""
    own: BaseException | None = None
    bare: Callable[[], object] | None = None
    system: type[OSError] | None = None
    needs: str = ""

    @property
    def is_here(self) -> bool:
        """Whether this machine has what it needs."""
        return not self.needs or find_spec(self.needs) is not None


class CommandError(Exception):
    """A command that ended with another status than 0; its text is the last line it printed."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        value: What it gave, if it raised nothing.
        error: What it raised.
        said: Warnings of fastcap.
        foreign: Warnings of other libraries.
        folder: Where it ran; its name differs from run to run.
    """

    value: object = None
    error: BaseException | None = None
    said: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    folder: str = ""


def happens(case: Case) -> Outcome:
    """Run a case."""
    torch.manual_seed(0)
    value, error = None, None
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for kind in (DeprecationWarning, FutureWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        try:
            value = case.do(Path(folder))
        except BaseException as raised:  # noqa: BLE001 - judged by who asked
            error = raised
    said = [str(each.message) for each in caught if issubclass(each.category, FastcapWarning)]
    foreign = [
        str(each.message)
        for each in caught
        if not issubclass(each.category, FastcapWarning) and not QUIET.search(str(each.message))
    ]
    return Outcome(value, error, said, foreign, folder)


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with what happens, whatever the page says."""
    found = [f"a warning of another library: {text}" for text in outcome.foreign]
    error = outcome.error
    if error is not None:
        if is_of_user(case):
            if not _is_own(case, error):
                found.append(f"the user's own error arrives as {error!r}")
        elif not isinstance(error, FastcapError | CommandError) and type(error) is not case.system:
            found.append(f"a raw error: {error!r}")
    elif case.right is None:
        found.append(f"a value, and nothing says which is right: {_short(outcome.value)}")
    elif not is_same(outcome.value, right := case.right()):
        found.append(f"a wrong value: {_short(outcome.value)} instead of {_short(right)}")
    return found


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:200]


def is_of_user(case: Case) -> bool:
    """Whether the error that has to come is not fastcap's."""
    return case.own is not None or case.bare is not None


def _is_own(case: Case, error: BaseException) -> bool:
    if case.bare is None:
        return error is case.own
    try:
        case.bare()
    except Exception as own:  # noqa: BLE001 - compared
        return type(own) is type(error) and str(own) == str(error)
    return False


def is_same(found: Any, right: Any) -> bool:
    """Whether two values are equal, tensors bit for bit."""
    if isinstance(right, list) and isinstance(found, list) and len(found) == len(right):
        return all(map(is_same, found, right))
    if isinstance(found, Tensor) or isinstance(right, Tensor):
        found, right = {"": found}, {"": right}
    if isinstance(right, Mapping) and any(isinstance(each, Tensor) for each in right.values()):
        return isinstance(found, Mapping) and differences(right, found) == []
    return bool(found == right)


def row(case: Case, outcome: Outcome) -> str:
    """The line of the table."""
    return f"| {case.mistake} | {_kind(case, outcome)} | {_text(case, outcome)} |"


def _kind(case: Case, outcome: Outcome) -> str:
    error = outcome.error
    if isinstance(error, CommandError):
        return f"exit status {error.status}"
    if error is not None:
        whose = "your code's " if is_of_user(case) else ""
        return f"{whose}`{type(error).__name__}`"
    return "a warning" if outcome.said else "as meant"


def _text(case: Case, outcome: Outcome) -> str:
    if is_of_user(case):
        return "As without fastcap, unchanged."
    texts = outcome.said if outcome.error is None else [str(outcome.error)]
    shown = [_quoted(text, outcome.folder) for text in texts]
    if outcome.error is None:
        shown.insert(0, f"{case.meant}.{' Says:' if shown else ''}")
    return " ".join(shown)


def _quoted(text: str, folder: str) -> str:
    """In one line, without what differs between machines and versions."""
    line = " ".join(text.replace(folder, "FOLDER").split())
    for pattern, shorter in SHORTENED:
        line = re.sub(pattern, shorter, line)
    marks = "``" if "`" in line else "`"
    return f"{marks}{line}{marks}".replace("|", "\\|")


# What most cases do


def run(
    data: Any = None, model: Any = None, sites: Any = "norm", **options: Any
) -> dict[str, Tensor]:
    """`extract_representations`, of one site of a small language model unless said."""
    return extract_representations(
        LanguageModel() if model is None else model,
        SAMPLES if data is None else data,
        sites,
        **{"device": "cpu", **options},
    )


def oracle(
    samples: Any = None,
    model: nn.Module | None = None,
    sites: Any = ("norm",),
    batch_size: int = 32,
    max_samples: int | None = None,
    **selection: Any,
) -> dict[str, Tensor]:
    """What such a run has to give."""
    return expected(
        LanguageModel() if model is None else model,
        SAMPLES if samples is None else samples,
        list(sites),
        batch_size,
        max_samples,
        make_selection(**selection),
    )
