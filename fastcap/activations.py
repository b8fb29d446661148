"""`ActivationStore`: capture while you drive the forward passes yourself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NoReturn, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.budget import make_limits
from fastcap.engine import Engine, Pass
from fastcap.errors import ArgumentTypeError
from fastcap.forward import is_compiled
from fastcap.hooks import detach
from fastcap.records import Statistics
from fastcap.sites import Sites, as_site_names, bind_sites
from fastcap.spec import Positions, make_selection
from fastcap.warn import warn


class ActivationStore:
    """Captures what modules return, at every forward pass while it is enabled.

    Use it as a context manager, or call `enable` and `disable`. A site keeps the value of its last
    call until the next one or `clear`. Values are as they were when the hook fired: later in-place
    operations do not change them. Tensors you get are yours: on the CPU, contiguous, detached.

    Args:
        model: Any module. It keeps its `state_dict`, can be deep-copied (copies do not capture),
            and its outputs do not change.
        layers: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or modules
            of the model; one string is one site. Behind a name, `:output[1]`, `:output.name`,
            `:input` or `:input.name` ask for another part; see `docs/concepts.md`.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`.
        reduce: A callable on the selected tensor, on its own device, before the copy.
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension `positions` count along; 1 unless given.
        zero_copy: Lend values out of pinned slots where they fill at least half of one, instead of
            copying them; the slot is used again when the tensor and every view of it are gone.
        device_bytes: Staging memory on the accelerator, in bytes.
        host_bytes: Slot memory on the host, in bytes.

    Raises:
        ArgumentTypeError, ArgumentError: An argument of the wrong type or out of range. Names are
            checked by `enable`.

    Example:
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
        positions: Positions = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype | None = None,
        seq_dim: int | None = None,
        zero_copy: bool = False,
        device_bytes: int | None = None,
        host_bytes: int | None = None,
    ) -> None:
        self._model = model
        self._names = as_site_names(layers, model)
        self._selection = make_selection(positions, reduce, dtype, seq_dim)
        self._limits = make_limits(device_bytes, host_bytes)
        self._zero_copy = zero_copy
        self._latest = Pass()
        self._engine: Engine | None = None
        self._past = Statistics()
        self._hooks: list[RemovableHandle] = []
        weakref.finalize(self, detach, self._hooks).atexit = False

    @property
    def enabled(self) -> bool:
        """Whether the hooks are on the model."""
        return self._engine is not None

    @property
    def layer_names(self) -> list[str]:
        """The sites as given, in a new list: patterns unexpanded, modules as their paths."""
        return list(self._names)

    @property
    def activations(self) -> dict[str, Tensor]:
        """What is captured so far, in a new dict, in the order in which sites first fired.

        The tensors are the ones `get` returns.
        """
        values = {site: self.get(site) for site in list(self._latest.captures)}
        return {site: value for site, value in values.items() if value is not None}

    def enable(self) -> None:
        """Put hooks on the model. Does nothing when they are there already.

        Raises:
            SiteNotFoundError: A name is no module of the model; no hook is left behind.
        """
        if self._engine is not None:
            return
        sites = bind_sites(self._model, self._names)
        engine = Engine(self._model, sites, self._selection, self._limits, always=self._latest)
        engine.handles = self._hooks
        if is_compiled(self._model):
            self._retrace()
        engine.attach()
        self._engine = engine

    def _retrace(self) -> None:
        # R14: graphs compiled before the hooks exist skip them, some only for some input shapes.
        torch.compiler.reset()
        warn(
            "The model is compiled, and graphs compiled before a hook exists skip it. fastcap has "
            "cleared torch.compile's caches, so the next pass compiles again, with a graph break "
            "at each site. To avoid that, run the pass under "
            'torch.compiler.set_stance("force_eager").'
        )

    def disable(self) -> None:
        """Take the hooks off and give staging and slots back. What is captured stays readable."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        engine.detach()
        errors: list[Exception] = []
        try:
            for lane, capture in list(self._latest.captures.values()):
                try:
                    if capture.error is None:
                        lane.result(capture)
                except Exception as error:  # noqa: BLE001 - raised below, after the other values
                    errors.append(error)
        finally:
            engine.close()
            self._past += engine.statistics()
        if errors:
            raise errors[0]

    def clear(self) -> None:
        """Forget every captured value; the hooks stay."""
        self._latest.clear()

    def get(self, name: str) -> Tensor | None:
        """The value of a site's last call, or `None` if it has not fired or is not a site.

        May be called at any moment, also inside a pass. Asking again without a pass in between
        gives the same tensor.

        Returns:
            A CPU tensor, contiguous and detached, in the dtype the module produced unless asked
            otherwise. It is yours and never changes.

        Raises:
            DeviceMemoryError, HostMemoryError: The value could not be captured for lack of memory.
        """
        name = name.removesuffix(":output")  # the default part is in no key
        while (found := self._latest.captures.get(name)) is not None:
            lane, capture = found
            value = lane.result(capture, lend=self._zero_copy)
            if value is not None:
                return value
            # Another thread's pass replaced the value while this one was reading: take the new one.
        return None

    def statistics(self) -> Statistics:
        """What capturing has cost so far."""
        return self._past if self._engine is None else self._past + self._engine.statistics()

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
