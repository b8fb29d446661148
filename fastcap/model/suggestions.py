"""What is said about a name or pattern that a model does not have: what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from fastcap.model.patterns import Pattern

MOST_NAMES = 20


def module_not_found(name: str, available: Sequence[str]) -> str:
    """The message about a name, with close matches and the first names of the model."""
    return f"Module {name!r} not found in model. {_advice(name, available, available)}"


def not_captured(name: object, captured: Sequence[str], asked: Sequence[str]) -> str:
    """The message about a site of which a store has no value.

    Args:
        name: What was asked for.
        captured: The sites that have values.
        asked: The sites of the store.
    """
    problem = f"Nothing is captured at {name!r}"
    if name in asked:
        return f"{problem}: the site has not fired. Run the model while the store is enabled."
    close = difflib.get_close_matches(name, captured, n=3) if isinstance(name, str) else []
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    first = list(captured[:MOST_NAMES])
    more = "..." if len(captured) > len(first) else ""
    return f"{problem}. {hint}Captured: {first}{more} The store has the sites {list(asked)[:5]}."


def pattern_not_found(
    pattern: Pattern, available: Sequence[str], never_called: Sequence[str]
) -> str:
    """The message about a pattern that matches no module that is ever called.

    Args:
        pattern: The pattern.
        available: The names of the model.
        never_called: What matches and is left out, as the message shows it.
    """
    problem = f"Pattern {pattern.text!r} not found in model"
    if never_called:
        shown = ", ".join(never_called[:3])
        return (
            f"{problem}: all it matches is never called, such as {shown}. Ask for the modules in "
            f"it, for example with {_within(pattern.text)!r}."
        )
    if pattern.is_regex:
        return f"{problem}: it is found in no path. {_advice(None, available, available)}"
    return f"{problem}. {_advice(pattern.text, _generalise(available), available)}"


def _within(text: str) -> str:
    return "**" if text.startswith("re:") else f"{text}.*"


def _advice(wanted: str | None, candidates: Iterable[str], available: Sequence[str]) -> str:
    close = difflib.get_close_matches(wanted, candidates, n=3) if wanted is not None else []
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    first = sorted(available)[:MOST_NAMES]
    more = "..." if len(available) > len(first) else ""
    return (
        f"{hint}Available: {first}{more} "
        "All names: for name, _ in model.named_modules(): print(name)"
    )


def _generalise(names: Iterable[str]) -> list[str]:
    """The patterns of a model's names: numbers as `*`, and the last segment behind `**`."""
    numbered = [re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names if name]
    anywhere = [f"**.{name.rpartition('.')[2]}" for name in numbered]
    return list(dict.fromkeys([*numbered, *anywhere]))
