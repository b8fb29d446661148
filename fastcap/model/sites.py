"""From the names and patterns a user writes to the modules of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from fastcap.errors import ArgumentError, ArgumentTypeError, SiteNotFoundError
from fastcap.model.patterns import Pattern, is_pattern, read_pattern
from fastcap.model.suggestions import module_not_found, pattern_not_found
from fastcap.spec import Site, parse_site

WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Attribute names under which wrappers (torch.compile, DDP, FSDP, checkpointing) keep the module
they wrap. They are optional in site names where the module has no other child."""

Sites: TypeAlias = str | nn.Module | Iterable[str | nn.Module]
"""What callers may pass as `sites`: names, patterns and modules of the model."""


@dataclass(frozen=True, slots=True)
class BoundSite:
    """A site and the module it names in one model."""

    site: Site
    module: nn.Module


def either_name(layers: Sites | None, sites: Sites | None) -> Sites | None:
    """The argument of the calls that know it under two names.

    Raises:
        ArgumentError: Both are given.
    """
    if layers is not None and sites is not None:
        raise ArgumentError(
            f"layers={layers!r} and sites={sites!r}: these are two names of one argument. Pass one "
            "of them."
        )
    return sites if layers is None else layers


def as_site_names(sites: Sites | None, model: nn.Module) -> list[str]:
    """The names as given, as a list. One string or one module is one site.

    Raises:
        ArgumentTypeError: `sites` is not an iterable of strings or modules.
        SiteNotFoundError: A module is not part of the model.
    """
    if sites is None:
        return []
    given: list[Any] = [sites]
    if isinstance(sites, Iterable) and not isinstance(sites, str | nn.Module):
        given = list(sites)
    for item in given:
        if not isinstance(item, str | nn.Module):
            raise ArgumentTypeError(
                f"sites must be module names (strings) or modules of the model; got {item!r}. "
                "Print the names with: for name, _ in model.named_modules(): print(name)"
            )
    if all(isinstance(item, str) for item in given):
        return given
    paths = _Paths(model)
    return [item if isinstance(item, str) else paths.path_of(item) for item in given]


def bind_sites(model: nn.Module, names: Iterable[str]) -> list[BoundSite]:
    """Find every named module; a site given twice is one site.

    A name that exists literally is taken as it is, whatever is in it; every alias of a shared
    module counts. The segments that wrappers add to a path may be left out.

    A pattern stands for the modules that match, in model order, each under the first of its paths
    that does. It leaves out modules that are never called (`ModuleList`), and those that a name
    before it has bound already.

    Raises:
        SiteNotFoundError: A name that the model lacks, or a pattern that matches none; has advice.
        ArgumentError: A pattern, or the part after a colon, cannot be read.
    """
    paths = _Paths(model)
    bound: dict[str, BoundSite] = {}
    for name in names:
        site = Site(name, name) if paths.find(name) is not None else parse_site(name)
        module = paths.find(site.module)
        if module is not None:
            bound[site.name] = BoundSite(site, module)
        elif is_pattern(site.module):
            there = {(id(other.module), other.site.part) for other in bound.values()}
            for path, module in paths.expand(read_pattern(site.module)):
                if (id(module), site.part) not in there:
                    bound[path + site.part] = BoundSite(site.at(path), module)
        else:
            raise SiteNotFoundError(module_not_found(site.module, paths.names))
    return list(bound.values())


class _Paths:
    """The modules of one model by path, in model order, every alias included."""

    def __init__(self, model: nn.Module) -> None:
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._wrapped = _wrapped_in(self._modules)
        self._shortened: dict[frozenset[str], dict[str, nn.Module]] = {}

    @property
    def names(self) -> list[str]:
        """Every path without the segments of wrappers."""
        return list(self._without(WRAPPERS))

    def find(self, name: str) -> nn.Module | None:
        """The module of a path, from which segments of wrappers may be missing."""
        if name in self._modules:
            return self._modules[name]
        return self._without(WRAPPERS - set(name.split("."))).get(name)

    def path_of(self, module: nn.Module) -> str:
        """The first path of a module.

        Raises:
            SiteNotFoundError: It is not a module of this model.
        """
        for path, candidate in self._modules.items():
            if candidate is module:
                short = self._leave_out(path, WRAPPERS)
                return short if self.find(short) is module else path
        raise SiteNotFoundError(
            f"Module object of type {type(module).__name__} not found in model: it is not part of "
            f"this {type(self._modules['']).__name__}. Take it from the model itself, "
            "such as model.layers[3].mlp, or give its name."
        )

    def expand(self, pattern: Pattern) -> list[tuple[str, nn.Module]]:
        """The modules that match a pattern, each once.

        Raises:
            SiteNotFoundError: None does, or none matches something listed in braces.
        """
        candidates = list(self._candidates(pattern))
        matches = pattern.expression().search
        found: dict[int, tuple[str, nn.Module]] = {}
        for written, path, module in candidates:
            if matches(written) and can_be_called(module):
                found.setdefault(id(module), (path, module))
        if not found:
            never_called = [
                f"{path!r} ({type(module).__name__})"
                for written, path, module in candidates
                if matches(written)
            ]
            raise SiteNotFoundError(pattern_not_found(pattern, self.names, never_called))
        unmatched = [
            item
            for item, alone in pattern.items_asked()
            if not any(map(alone.expression().search, (written for written, *_ in candidates)))
        ]
        if unmatched:
            raise SiteNotFoundError(
                f"Pattern {pattern.text!r} not found in model: nothing matches with "
                f"{' or '.join(map(repr, unmatched))} in the braces, and everything listed there "
                "has to be in the model. The other items match "
                f"{_first_and_last([path for path, _ in found.values()])}. For whatever there is, "
                "write '*'."
            )
        return list(found.values())

    def _candidates(self, pattern: Pattern) -> Iterator[tuple[str, str, nn.Module]]:
        """Paths as the pattern may write them, the names of the sites, and the modules."""
        named = WRAPPERS.intersection(re.findall(r"\w+", pattern.text))
        for path, module in self._modules.items():
            name = self._leave_out(path, WRAPPERS)
            is_known_by_it = self.find(name) is module
            if is_known_by_it or named:
                written = self._leave_out(path, WRAPPERS - named)
                yield written, name if is_known_by_it else path, module

    def _without(self, segments: frozenset[str]) -> dict[str, nn.Module]:
        if segments not in self._shortened:
            self._shortened[segments] = {
                self._leave_out(path, segments): module for path, module in self._modules.items()
            }
        return self._shortened[segments]

    def _leave_out(self, path: str, names: frozenset[str]) -> str:
        """The path without the segments of wrappers that have one of these names."""
        kept, outer = [], ""
        for segment in path.split("."):
            outer = f"{outer}.{segment}".lstrip(".")
            if segment not in names or outer not in self._wrapped:
                kept.append(segment)
        return ".".join(kept)


def _wrapped_in(modules: dict[str, nn.Module]) -> set[str]:
    """Paths of modules that are the only child of their parent, under a name that wrappers give."""
    wrapped = set()
    for path, module in modules.items():
        names = [name for name, _ in module.named_children()]
        if len(names) == 1 and names[0] in WRAPPERS:
            wrapped.add(f"{path}.{names[0]}".lstrip("."))
    return wrapped


def can_be_called(module: nn.Module) -> bool:
    """Whether there is a `forward`: containers such as `ModuleList` have none."""
    return getattr(module.forward, "__func__", module.forward) is not nn.Module.forward


def _first_and_last(paths: list[str]) -> str:
    return repr(paths[0]) if len(paths) == 1 else f"{paths[0]!r} to {paths[-1]!r}"
