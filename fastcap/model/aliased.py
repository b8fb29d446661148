"""Which modules a site alias led to, remembered for what is said of them later."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

_aliases: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def remember_alias(module: nn.Module, alias: str) -> None:
    """An alias was resolved to this module."""
    _aliases[module] = alias


def alias_of(module: nn.Module) -> str | None:
    """The alias that led to this module, or `None` where it was named otherwise."""
    return _aliases.get(module)
