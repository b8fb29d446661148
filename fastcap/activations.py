"""`ActivationStore`: capture while you drive the forward passes yourself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import NoReturn, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.engine import Engine, Pass
from fastcap.errors import ArgumentTypeError, NotCapturedError
from fastcap.formatting import columns, html_table
from fastcap.model.forward import forget_compiled, has_compiled, is_compiled
from fastcap.model.hooks import detach
from fastcap.model.passes import watch_passes
from fastcap.model.sites import Sites, bind_sites, either_name
from fastcap.model.suggestions import not_captured
from fastcap.records import Statistics, describe_tensor
from fastcap.request import request_capture
from fastcap.selection.per_sample import MaskOf
from fastcap.spec import Positions, Reduce
from fastcap.warn import warn


class ActivationStore:
    """Captures module outputs in every forward pass while it is enabled.

    Use it as a context manager, or call `enable` and `disable`. A site keeps the value of its last
    call until the next call or `clear`. Values are snapshots taken when the hook fires: later
    in-place operations do not change them. Tensors you get are yours: on the CPU, contiguous and
    detached.

    Args:
        model: Any module. Its `state_dict` and outputs do not change, and it can be deep-copied
            (copies do not capture).
        layers: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or module
            objects of the model; one string is one site. A suffix `:output[1]`, `:output.name`,
            `:input` or `:input.name` selects another part; see `docs/concepts.md`.
        sites: Another name for `layers`; give one of them.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`;
            `"last"` for the last real token of each sample; `"unpadded"` for all real tokens,
            concatenated (see `lengths`); or one list of ints per sample, for passes of that many
            samples.
        reduce: A callable applied to the selected tensor on its own device, before the copy; or
            `"mean"` over the real tokens of each sample, accumulated in float32 (float64 for
            float64).
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension that `positions` index, counted with samples first; 1 by default.
        batch_dim: The dimension of a site's value that counts samples, such as 1 for a
            sequence-first `(sequence, batch, ...)`. It is moved to the front before anything else.
        mask: Which tokens are real, `(batch, sequence)` of zeros and ones: a tensor for all passes,
            or a callable that takes the arguments of the model call, such as
            `lambda ids: ids != 0`. By default the `attention_mask` the model is called with.
        calls: `"last"` keeps the last call of each module; `"all"` keeps every call until `clear`,
            including loops, shared modules and the steps of `generate()`: see `calls`. By default
            the last, with a warning if a pass has others.
        zero_copy: Lend values out of pinned slots where they fill at least half of one, instead of
            copying them; the slot is reused when the tensor and all views of it are gone.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.

    Raises:
        ArgumentTypeError, ArgumentError: An argument of the wrong type or out of range. Site
            names are checked by `enable`.

    Examples:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
        >>> with fastcap.ActivationStore(model, ["0"]) as store:
        ...     _ = model(torch.ones(4, 2))
        >>> store.get("0").shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sites | None = None,
        *,
        sites: Sites | None = None,
        positions: Positions = None,
        reduce: Reduce = None,
        dtype: torch.dtype | None = None,
        seq_dim: int | None = None,
        batch_dim: int = 0,
        mask: MaskOf = None,
        calls: str | None = None,
        zero_copy: bool = False,
        staging_bytes: int | None = None,
        pinned_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._request = request_capture(
            model,
            either_name(layers, sites),
            positions=positions,
            reduce=reduce,
            dtype=dtype,
            seq_dim=seq_dim,
            batch_dim=batch_dim,
            mask=mask,
            calls=calls,
            zero_copy=zero_copy,
            staging_bytes=staging_bytes,
            pinned_bytes=pinned_bytes,
        )
        self._zero_copy = zero_copy
        self._latest = Pass(keeps_all=bool(self._request.keeps_all))
        self._engine: Engine | None = None
        self._is_enabled = False
        self._past = Statistics()
        self._bound: list[str] | None = None  # the sites of the last `enable`
        self._warned_of: set[str] = set()  # names that `get` was asked for; "" of the store itself
        self._hooks: list[RemovableHandle] = []
        self._root_hooks: list[RemovableHandle] = []
        for handles in (self._hooks, self._root_hooks):
            weakref.finalize(self, detach, handles).atexit = False

    @property
    def enabled(self) -> bool:
        """Whether the hooks are on the model."""
        return self._is_enabled

    @property
    def layer_names(self) -> list[str]:
        """The sites as given, in a new list: patterns unexpanded, modules as their paths."""
        return list(self._request.names)

    @property
    def activations(self) -> dict[str, Tensor]:
        """A new dict of everything captured so far, in the order in which sites first fired.

        The tensors are the same objects that `get` returns.
        """
        values = {site: self._find(site) for site in list(self._latest.captures)}
        return {site: value for site, value in values.items() if value is not None}

    def enable(self) -> None:
        """Register the hooks on the model; does nothing if they already are.

        Raises:
            SiteNotFoundError: A site does not name a module of the model; no hook is left behind.
        """
        if self._is_enabled:
            return
        self.disable()  # where an interrupt has left something of it
        sites = bind_sites(self._model, self._request.names)
        engine = self._request.engine(sites, self._latest)
        engine.handles = self._hooks
        if is_compiled(self._model) or has_compiled():
            self._retrace()
        try:
            self._engine = engine  # first: from here on `disable` finds what there is
            engine.attach()
            begun, ended = _unless_gone(self._begin_pass), _unless_gone(self._end_pass)
            watch_passes(self._model, begun, ended, self._root_hooks)
            self._bound, self._is_enabled = list(engine.site_names), True
        except BaseException:
            self.disable()
            raise

    def _begin_pass(self) -> None:
        self._latest.counts.begin()

    def _end_pass(self) -> None:
        engine = self._engine  # another thread may be disabling it
        if engine is not None:
            engine.report_unfired()
            if self._request.keeps_all is None:
                engine.report_repeated(self._latest)

    def _retrace(self) -> None:
        # R14: graphs compiled before the hooks exist skip them, some only for some input shapes.
        forget_compiled()
        warn(
            "The model is compiled, or a function was that may call it, and graphs compiled before "
            "a hook exists skip it. fastcap has "
            "cleared torch.compile's caches, so the next pass compiles again, with a graph break "
            "at each site. To avoid that, run the pass under "
            'torch.compiler.set_stance("force_eager").'
        )

    def disable(self) -> None:
        """Remove the hooks and free staging and slots. Captured values stay readable.

        An interrupt within it costs the values that were still on their way, which are errors then;
        called again, it does what is left to do.
        """
        self._is_enabled = False
        detach(self._root_hooks)
        detach(self._hooks)
        engine = self._engine
        if engine is None:
            return
        errors: list[Exception] = []
        try:
            for transfer, capture in self._latest.all():
                try:
                    if capture.error is None:
                        transfer.result(capture)
                except Exception as error:  # noqa: BLE001 - raised below, after the other values
                    errors.append(error)
        finally:
            engine.close()
            past = self._past + engine.statistics()
            if self._engine is engine:  # else another thread was first
                self._engine, self._past = None, past
        if errors:
            raise errors[0]

    def clear(self) -> None:
        """Drop every captured value; the hooks stay."""
        self._latest.clear()

    def get(self, name: str) -> Tensor | None:
        """The value of a site's last call, or `None` if it has not fired or is not a site.

        Can be called at any time, including inside a pass. Calling it again without a pass in
        between returns the same tensor. A name that is not a site of this store, and a store that
        was never enabled, are warned about once.

        Returns:
            A CPU tensor, contiguous and detached, in the dtype the module produced unless `dtype`
            was given. It is yours and never changes.

        Raises:
            DeviceMemoryError, HostMemoryError: There was not enough memory to capture the value.
        """
        value = self._find(name)
        if value is None:
            self._warn_of_none(name.removesuffix(":output"))
        return value

    def _find(self, name: str) -> Tensor | None:
        name = name.removesuffix(":output")  # the default part is in no key
        while (found := self._latest.captures.get(name)) is not None:
            transfer, capture = found
            value = transfer.result(capture, lend=self._zero_copy)
            if value is not None:
                return value
            # Another thread's pass replaced the value while this one was reading: take the new one.
        return None

    def _warn_of_none(self, name: str) -> None:
        """Say once what no later pass will change; a site that has not fired yet is no mistake."""
        if self._bound is None:
            name, message = "", "The store was never enabled, so it has no values: call enable()."
        elif name in self._bound:
            return
        else:
            message = not_captured(name, list(self), self._bound)
        if name not in self._warned_of:
            self._warned_of.add(name)
            warn(message)

    def calls(self, name: str) -> list[Tensor]:
        """The values of a site's calls since `clear`, in order; with `calls="last"`, only the last.

        The tensors are like those of `get`. With `calls="all"`, this includes every call of a
        module that is called several times per pass, and every step of `generate()`.

        Raises:
            DeviceMemoryError, HostMemoryError: There was not enough memory to capture a value.
        """
        found = self._latest.calls(name.removesuffix(":output"))
        values = [transfer.result(capture, lend=self._zero_copy) for transfer, capture in found]
        if values == [None]:  # another thread's pass replaced it while this one was reading
            values = [self._find(name)]
        return [value for value in values if value is not None]

    def age(self, name: str) -> int | None:
        """How many passes old the value of `get` is; `None` if there is none.

        0 is the latest pass. A larger number means that the site has not fired since. Passes are
        calls of the model itself, not of its submodules.
        """
        return self._latest.counts.age(name.removesuffix(":output"))

    def lengths(self, name: str) -> tuple[int, ...] | None:
        """With `positions="unpadded"`, the number of rows of each sample in a site's value.

        `store.get(name).split(store.lengths(name))` is one tensor per sample. `None` for other
        selections, and if `get` returns `None`.
        """
        found = self._latest.captures.get(name.removesuffix(":output"))
        return None if found is None else found[1].lengths

    def statistics(self) -> Statistics:
        """What capturing has cost so far."""
        engine = self._engine
        return self._past if engine is None else self._past + engine.statistics()

    def __getitem__(self, name: str) -> Tensor:
        """As `get`, but a site without a value is an error.

        Raises:
            NotCapturedError: The site has not fired, or is not a site of this store.
        """
        value = self._find(name) if isinstance(name, str) else None
        if value is None:
            raise NotCapturedError(not_captured(name, list(self), self._sites()))
        return value

    def __contains__(self, name: object) -> bool:
        """Whether a site has a value."""
        return isinstance(name, str) and name.removesuffix(":output") in self._latest.captures

    def __iter__(self) -> Iterator[str]:
        """The sites that have values, in the order in which they first fired."""
        return iter(list(self._latest.captures))

    def __len__(self) -> int:
        """How many sites have values."""
        return len(self._latest.captures)

    def __bool__(self) -> bool:
        return True  # also of a store that has captured nothing yet

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def _sites(self) -> list[str]:
        """The sites: as they were given until it is enabled, then with patterns expanded."""
        return self.layer_names if self._bound is None else list(self._bound)

    def _title(self) -> str:
        state = "enabled" if self.enabled else "not enabled"
        n_asked, kind = len(self._sites()), type(self._model).__name__
        return f"ActivationStore({kind}, {state}, {len(self)} captured, sites asked: {n_asked})"

    def _captured(self) -> list[tuple[str, str, str]]:
        """Site, shape and dtype of what is captured; waits for nothing."""
        found = list(self._latest.captures.items())
        return [(site, *describe_tensor(capture)) for site, (_, capture) in found]

    def __repr__(self) -> str:
        rows = self._captured()
        lines = columns(rows, "<<<") if rows else ()
        return "\n".join([self._title(), *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        return html_table(self._title(), [("site", "shape", "dtype"), *self._captured()])

    def __reduce__(self) -> NoReturn:
        raise ArgumentTypeError(
            "An ActivationStore is bound to hooks on its model and cannot be copied or pickled. "
            "Copy its values instead: store.activations is a new dict."
        )

    def __enter__(self) -> Self:
        self.enable()
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()


def _unless_gone(method: Callable[[], None]) -> Callable[[], None]:
    """The method, called while its object lives, which this does not prolong (R12)."""
    method_ref = weakref.WeakMethod(method)

    def call() -> None:
        alive = method_ref()
        if alive is not None:
            alive()

    return call
