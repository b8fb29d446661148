"""From the names a user writes to the modules of a model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from fastcap.errors import ArgumentTypeError, SiteNotFoundError
from fastcap.spec import Site, parse_site

WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Attribute names under which wrappers (torch.compile, DDP, FSDP, checkpointing) keep the module
they wrap. They are optional in site names."""


@dataclass(frozen=True, slots=True)
class BoundSite:
    """A site and the module it names in one model."""

    site: Site
    module: nn.Module


def as_site_names(layers: Iterable[str] | None) -> list[str]:
    """The names as given, as a list. One string is one site.

    Raises:
        ArgumentTypeError: `layers` is no iterable of strings.
    """
    if layers is None:
        return []
    if isinstance(layers, str):
        return [layers]
    names = list(layers) if isinstance(layers, Iterable) else [layers]
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"layers must be module names (strings); got {name!r}. Print the names with: "
                "for name, _ in model.named_modules(): print(name)"
            )
    return names


def bind_sites(model: nn.Module, names: Iterable[str]) -> list[BoundSite]:
    """Find every named module; a name given twice is one site.

    A name that exists literally is taken as it is, colons included; every alias of a shared module
    counts. The parts that wrappers add to a path may be left out.

    Raises:
        SiteNotFoundError: A name is no module; the message gives close matches.
        ArgumentError: The part after a colon cannot be read.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    unwrapped = {_without_wrappers(path): module for path, module in modules.items()}
    bound = {}
    for name in names:
        is_literal = name in modules or name in unwrapped
        site = Site(name, name) if is_literal else parse_site(name)
        module = modules.get(site.module, unwrapped.get(site.module))
        if module is None:
            raise SiteNotFoundError(_not_found(site.module, list(unwrapped)))
        bound[site.name] = BoundSite(site, module)
    return list(bound.values())


def _without_wrappers(path: str) -> str:
    return ".".join(segment for segment in path.split(".") if segment not in WRAPPERS)


def _not_found(name: str, available: list[str]) -> str:
    close = difflib.get_close_matches(name, available, n=3)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    first = sorted(available)[:20]
    more = "..." if len(available) > len(first) else ""
    return (
        f"Module {name!r} not found in model. {hint}Available: {first}{more} "
        "All names: for name, _ in model.named_modules(): print(name)"
    )
