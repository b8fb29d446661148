"""Why a site produced nothing in a pass, found by looking at the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from fastcap.model.aliased import alias_of
from fastcap.model.sites import BoundSite
from fastcap.spec import LAST_CALL

MOST_SHOWN = 5
"""Sites that one warning names."""

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def describe_repeated(n_calls: Mapping[str, int]) -> str:
    """Sites that fired several times in a pass, with how often, and the way to the other calls."""
    names = list(n_calls)
    shown = ", ".join(f"{name!r} ({n_calls[name]} calls)" for name in names[:MOST_SHOWN])
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    path, colon, part = names[0].partition(":")
    first, last = (f"{path}@{call}{colon}{part}" for call in (0, LAST_CALL))
    return (
        f"A pass calls these more than once, and only the last call is kept: {shown}{more}. "
        f"{first!r} is the first call, and {last!r} says that the last is meant; "
        "fastcap.stream() and ActivationStore keep every call with calls='all'."
    )


def explain_unfired(model: nn.Module, bound: BoundSite, is_hooked: bool, n_calls: int = 0) -> str:
    """One line: which site, why, and what to do.

    Args:
        model: The root, as it is now.
        bound: The site that produced nothing, with the module it named when hooks were put on.
        is_hooked: Whether the hook is still on that module.
        n_calls: How often the module was called in a pass, if the site asks for one call.
    """
    if n_calls:
        return (
            f"Nothing is captured at site {bound.site.name!r}: the module is called {n_calls} "
            f"times in a pass, and calls are counted from 0. The last is @{n_calls - 1}."
        )
    alias = alias_of(bound.module)
    led = f", to which the alias {alias!r} led" if alias else ""
    return (
        f"Nothing is captured at site {bound.site.name!r}{led}: {_reason(model, bound, is_hooked)}"
    )


def _reason(model: nn.Module, bound: BoundSite, is_hooked: bool) -> str:
    module = bound.module
    paths = [path for path, other in model.named_modules(remove_duplicate=False) if other is module]
    if not paths:
        return (
            "the module with this name was replaced after the hooks were put on. Replace modules "
            "first, then enable or start the run."
        )
    if not is_hooked:
        return "something removed its hook. Disable and enable again."
    kind = type(module).__name__
    if isinstance(module, CONTAINERS):
        first = next((name for name, _ in module.named_children()), "0")
        return (
            f"a {kind} holds modules and is not called itself. Name what it holds, such as "
            f"{f'{paths[0]}.{first}'!r}."
        )
    for path, ancestor in _ancestors(model, paths[0]):
        reason = _bypass(path, ancestor, kind)
        if reason:
            return reason
    return (
        "the forward pass never called the module. A branch not taken, an expert that got no "
        "token, a weight that is used without its module, or its forward() called directly, which "
        "runs no hooks; capture a module around it."
    )


def _bypass(path: str, ancestor: nn.Module, kind: str) -> str:
    """Why an ancestor that ran may not have called the module."""
    where = repr(path) if path else "the model"
    if isinstance(ancestor, nn.MultiheadAttention):
        return (
            f"{where} is an nn.MultiheadAttention, which uses the weights of its {kind} without "
            f"calling it. Capture {where}."
        )
    if isinstance(ancestor, nn.TransformerEncoderLayer) and not ancestor.training:
        return (
            f"{where} is an {type(ancestor).__name__} in eval mode, whose fast path computes the "
            f"whole layer without calling its modules. Capture {where}, or turn the fast path off: "
            "torch.backends.mha.set_fastpath_enabled(False)."
        )
    return ""


def _ancestors(model: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules around one, the nearest first."""
    segments = path.split(".") if path else []
    for end in range(len(segments) - 1, -1, -1):
        outer = ".".join(segments[:end])
        yield outer, model.get_submodule(outer)
