"""Where the attention mask comes from: the model's call, the batch, or the user."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import ActivationStore, devices, reference, stream
from fastcap.devices.base import AnyDevice
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.errors import SelectionError
from fastcap.reference import ReferenceStore, differences
from fastcap.selection.masks import MaskReader
from fastcap.selection.padding import Padding
from fastcap.selection.selector import MOST_INDICES, Selector
from fastcap.selection.token_count import TokenCounter
from fastcap.spec import Site, make_selection
from tests.support.datasets import make_ids
from tests.support.errors import message_of
from tests.support.models import N_ROOT_HOOKS, LanguageModel, hooks_on

MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LAST = [2, 4, 0]


def last_of(full: Tensor) -> Tensor:
    return torch.stack([full[sample, position] for sample, position in enumerate(LAST)])


def full_of(model: nn.Module, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    with ReferenceStore(model, ["norm"]) as oracle:
        model(ids, mask)
    return oracle.activations["norm"]


def open_store(model: nn.Module, **options: Any) -> fastcap.ActivationStore:
    return fastcap.ActivationStore(model, ["norm"], positions="last", **options)


# A store


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16],
    ids=str,
)
@pytest.mark.parametrize("by_name", [True, False])
def test_the_mask_of_the_call_by_name_or_by_position(dtype: torch.dtype, by_name: bool) -> None:
    model, ids, mask = LanguageModel(), make_ids(3), MASK.to(dtype)
    with open_store(model) as store:
        model(ids, attention_mask=mask) if by_name else model(ids, mask)
    assert torch.equal(store.activations["norm"], last_of(full_of(model, ids, mask)))


def test_a_mask_given_to_the_store_is_for_every_pass_and_needs_no_hook_on_the_model() -> None:
    model, ids, given = LanguageModel(), make_ids(3), MASK.clone()
    with open_store(model, mask=given) as store:
        assert hooks_on(model) == 1 + N_ROOT_HOOKS
        given.zero_()  # it was read when the store was made
        model(ids)
        assert torch.equal(store.activations["norm"], last_of(full_of(model, ids)))
        store.clear()
        acts = torch.randn(3, 5, 16)
        assert torch.equal(last_of(model.norm(acts)), store.activations["norm"])


def test_a_callable_makes_the_mask_of_the_arguments_of_the_call() -> None:
    model, ids = LanguageModel(), make_ids(3).masked_fill(MASK == 0, 0)
    ids = ids.masked_fill((MASK == 1) & (ids == 0), 1)
    with open_store(model, mask=lambda ids, *_: ids != 0) as store:
        model(ids)
    assert torch.equal(store.activations["norm"], last_of(full_of(model, ids)))


def test_each_pass_has_its_own_mask_and_none_is_left_behind() -> None:
    model, ids = LanguageModel(), make_ids(3)
    with open_store(model) as store:
        for mask in (MASK, MASK.flip(0), MASK.flip(1)):
            model(ids, mask)
            with ReferenceStore(model, ["norm"], make_selection("last")) as oracle:
                model(ids, mask)
            assert differences(oracle.activations, store.activations) == []
        with pytest.raises(SelectionError, match="the model's call has none"):
            model(ids)
    assert hooks_on(model) == 0


class Overwrites(LanguageModel):
    """Writes to its mask before the first site."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        assert attention_mask is not None
        acts = self.token_embedding(input_ids)
        attention_mask.fill_(1)
        output: Tensor = self.norm(acts)
        return output


def test_the_mask_is_the_one_the_model_was_called_with() -> None:
    model, ids = Overwrites(), make_ids(3)
    with (
        open_store(model) as store,
        ReferenceStore(model, ["norm"], make_selection("last")) as oracle,
    ):
        model(ids, MASK.clone())
    assert torch.equal(store.activations["norm"], last_of(full_of(model, ids, MASK.clone())))
    assert differences(oracle.activations, store.activations) == []


class Reenters(LanguageModel):
    """Calls itself with another mask before its own sites, and perhaps is interrupted there."""

    interrupts = False
    inner: Any = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        if self.inner is not None:
            inner, self.inner = self.inner, None
            with suppress(KeyboardInterrupt):
                self(input_ids, inner)
        elif self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt
        return super().forward(input_ids, attention_mask)


@pytest.mark.filterwarnings("ignore:A pass calls these")
@pytest.mark.parametrize("interrupts", [False, True])
def test_a_call_within_a_call_has_its_own_mask(interrupts: bool) -> None:
    model, ids = Reenters(), make_ids(3)
    with open_store(model) as store:
        model.inner, model.interrupts = MASK.flip(1), interrupts
        model(ids, MASK)
    assert torch.equal(store.activations["norm"], last_of(full_of(model, ids, MASK)))


def test_an_interrupted_pass_leaves_no_mask_to_modules_called_alone() -> None:
    model, ids = Reenters(), make_ids(3)
    with open_store(model) as store:
        model.interrupts = True
        with pytest.raises(KeyboardInterrupt):
            model(ids, MASK)
        with pytest.raises(SelectionError, match="called on its own"):
            model.norm(torch.randn(3, 5, 16))
        model(ids, MASK)
    assert torch.equal(store.activations["norm"], last_of(full_of(model, ids, MASK)))


def test_threads_have_their_own_masks() -> None:
    model, ids, found = LanguageModel(), make_ids(3), dict[str, Any]()
    masks = {"first": MASK, "second": MASK.flip(1)}
    both = threading.Barrier(2)

    def meet(*_: object) -> None:
        both.wait(timeout=10)  # both passes are under way, each with its mask

    def keep(acts: Tensor) -> Tensor:
        found[threading.current_thread().name] = acts.clone()
        return acts

    model.layers["0"].register_forward_hook(meet)
    with fastcap.ActivationStore(model, ["norm"], positions="last", reduce=keep):
        threads = [
            threading.Thread(target=model, args=(ids, mask), name=name)
            for name, mask in masks.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        model.layers["0"]._forward_hooks.clear()
    for name, mask in masks.items():
        with ReferenceStore(model, ["norm"], make_selection("last")) as oracle:
            model(ids, mask)
        assert torch.equal(found[name], oracle.activations["norm"])


def test_a_copy_of_the_model_does_not_disturb_the_masks() -> None:
    model, ids = LanguageModel(), make_ids(3)
    with open_store(model) as store:
        other = copy.deepcopy(model)
        other(ids)  # no mask, and nobody minds
        model(ids, MASK)
        other(ids)
        assert torch.equal(store.activations["norm"], last_of(full_of(model, ids, MASK)))


# Streams and extraction


def batches(**more: Any) -> list[dict[str, Any]]:
    return [{"input_ids": make_ids(3, seed=i), "attention_mask": MASK, **more} for i in range(2)]


def test_the_mask_of_the_batch_counts_though_the_model_does_not_get_it_and_it_is_said() -> None:
    model = LanguageModel()
    with pytest.warns(fastcap.FastcapWarning, match="attend to the padding"):
        found = [dict(r) for r in fastcap.stream(model, batches(), ["norm"], positions="last")]
    for batch, records in zip(batches(), found, strict=True):
        assert torch.equal(records["norm"], last_of(full_of(model, batch["input_ids"])))


def test_tuples_and_forward_give_the_mask_through_the_call() -> None:
    model, options = LanguageModel(), {"reduce": "mean"}
    selection: dict[str, Any] = options
    tuples = [(batch["input_ids"], batch["attention_mask"]) for batch in batches()]
    expected = list(
        reference.stream(model, tuples, ["norm"], lambda m, b: m(*b), make_selection(**selection))
    )
    names = ["input_ids", "attention_mask"]
    by_tuple = [
        dict(r) for r in fastcap.stream(model, tuples, ["norm"], model_inputs=names, **selection)
    ]
    by_forward = [
        dict(r)
        for r in fastcap.stream(
            model, tuples, ["norm"], forward=lambda m, b: m(b[0], attention_mask=b[1]), **selection
        )
    ]
    for want, first, second in zip(expected, by_tuple, by_forward, strict=True):
        assert differences(want, first) == differences(want, second) == []


def test_a_callable_on_the_batch_comes_before_its_attention_mask() -> None:
    model = LanguageModel()
    runs = [{**batch, "attention_mask": torch.ones_like(MASK), "real": MASK} for batch in batches()]
    found = list(
        fastcap.stream(model, runs, ["norm"], positions="last", mask=lambda batch: batch["real"])
    )
    for batch, records in zip(runs, found, strict=True):
        assert torch.equal(records["norm"], last_of(full_of(model, batch["input_ids"])))


def test_extraction_takes_a_mask_of_plain_token_ids() -> None:
    model = LanguageModel()
    ids = make_ids(3).clamp_min(1) * MASK
    found = fastcap.extract_representations(
        model,
        [{"input_ids": row} for row in ids],
        ["norm"],
        "cpu",
        positions="last",
        mask=lambda batch: batch["input_ids"] != 0,
    )
    assert torch.equal(found["norm"], last_of(full_of(model, ids)))


def test_passes_of_the_callers_own_between_batches_need_no_mask() -> None:
    model = LanguageModel()
    for _ in fastcap.stream(
        model, batches(), ["norm"], positions="last", model_inputs=["attention_mask"]
    ):
        model(make_ids(2))


def test_an_empty_mask_ends_a_stream_after_the_batches_before_it() -> None:
    model, runs = LanguageModel(), batches()
    runs[1]["attention_mask"] = torch.zeros_like(MASK)
    run = fastcap.stream(model, runs, ["norm"], positions="last", model_inputs=["attention_mask"])
    assert next(run)["norm"].shape == (3, 16)
    with pytest.raises(SelectionError, match="no real token"):
        next(run)
    assert hooks_on(model) == 0


# What it costs


class Uploading(SynchronousDevice):
    """Counts the small tensors that are put on it, each of which is a tensor of its own."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.uploads: list[Tensor] = []

    def upload(self, value: Tensor) -> Tensor:
        self.uploads.append(value.clone())
        return self.uploads[-1]


def always(device: AnyDevice) -> Callable[[torch.device], AnyDevice]:
    return lambda _: device


@pytest.mark.parametrize(
    ("options", "n_tensors"),
    [({"positions": "last"}, 2), ({"positions": "unpadded"}, 2), ({"reduce": "mean"}, 2)],
    ids=["last", "unpadded", "mean"],
)
def test_index_tensors_are_built_once_a_pass_whatever_the_number_of_sites(
    options: dict[str, Any], n_tensors: int
) -> None:
    model, device = LanguageModel(n_layers=8), Uploading()
    sites = [f"layers.{i}" for i in range(8)]
    with devices.substitute(always(device)), fastcap.ActivationStore(model, sites, **options):
        for n_passes in (1, 2):
            model(make_ids(3), MASK)
            assert len(device.uploads) == n_passes * n_tensors


def test_lists_and_a_fixed_mask_are_uploaded_once_for_all_passes() -> None:
    model = LanguageModel()
    for options in ({"positions": [[0], [1], [2]]}, {"positions": "last", "mask": MASK}):
        device, selection = Uploading(), dict[str, Any](options)
        with (
            devices.substitute(always(device)),
            fastcap.ActivationStore(model, ["norm"], **selection),
        ):
            for _ in range(3):
                model(make_ids(3))
        assert len(device.uploads) == 2


def test_each_stream_has_index_tensors_of_its_own() -> None:
    device = SimulatedDevice(Schedule("random", seed=1))
    last, _ = Padding(MASK).last
    first = last.on(device)
    assert last.on(device) is first
    other = device.new_stream("other")
    device.use_stream(other)
    copies = len(last._copies)
    last.on(device)
    assert len(last._copies) == copies + 1


def test_a_stream_that_may_be_ended_keeps_no_index_tensors() -> None:
    """Another stream may have its name later, and knows nothing of the upload."""
    device = Uploading()
    device.lasts = lambda stream: False  # type: ignore[method-assign]
    last, _ = Padding(MASK).last
    assert last.on(device).equal(last.on(device))
    assert len(device.uploads) == 2


def test_positions_are_uploaded_once_for_each_length_and_stream() -> None:
    """Through the device, so that the host does not wait; and streams share no tensor."""
    device, streams = Uploading(), ["first", "second"]
    selector, site, tokens = Selector(make_selection([0, -1])), Site("0", "0"), TokenCounter()
    for _ in range(3):
        for each in streams:
            device.current_stream = lambda each=each: each  # type: ignore[method-assign,misc]
            for length in (3, 5):
                value = torch.arange(2 * length).view(2, length, 1)
                taken = selector(value, site, tokens, device=device)
                assert taken.equal(value[:, [0, -1]])
    assert [index.tolist() for index in device.uploads] == [[0, 2], [0, 4]] * len(streams)


def test_index_tensors_of_many_lengths_stay_those_of_their_stream() -> None:
    """More lengths than are kept: what is let go was used on the stream that uploaded it only."""
    device = Uploading()
    selector, site, tokens = Selector(make_selection([0])), Site("0", "0"), TokenCounter()
    for length in range(1, 2 * MOST_INDICES):
        value = torch.ones(1, length, 1)
        assert selector(value, site, tokens, device=device).equal(value[:, :1])
    assert len(selector._indices) <= MOST_INDICES


class Faraway(Tensor):
    """A tensor that says it lives on an accelerator."""

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False


def test_a_mask_that_lives_on_the_device_only_is_read_once_a_pass_and_counted() -> None:
    model = LanguageModel()
    sites = ["layers.0", "layers.1", "norm"]
    with fastcap.ActivationStore(model, sites, positions="last") as store:
        for n_passes in (1, 2):
            model(make_ids(3), MASK.as_subclass(Faraway))
            assert store.statistics().mask_reads == n_passes
        model(make_ids(3), MASK)
        assert store.statistics().mask_reads == 2
    assert store.statistics().mask_reads == 2


def test_without_a_selection_that_needs_it_no_mask_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a mask was asked for")

    monkeypatch.setattr(MaskReader, "before", refuse)
    monkeypatch.setattr(MaskReader, "padding", refuse)
    model = LanguageModel()
    with fastcap.ActivationStore(model, ["norm"], positions=-1, seq_dim=1) as store:
        assert hooks_on(model) == 1 + N_ROOT_HOOKS
        model(make_ids(3), MASK.float())
        assert store.activations["norm"].shape == (3, 16)


def masked_in_a_hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """As a user's own hook that sets the mask of every call."""
    return args, {**kwargs, "attention_mask": torch.tensor([[1, 1, 0, 0]])}


class Masked(nn.Module):
    """Takes a mask, and does nothing with it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(10, 2)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        result: Tensor = self.layer(ids)
        return result


def test_a_mask_is_read_as_the_hooks_of_others_before_left_it() -> None:
    model = Masked()
    model.register_forward_pre_hook(masked_in_a_hook, with_kwargs=True)
    ids = torch.tensor([[1, 2, 3, 4]])
    with (
        ActivationStore(model, ["layer"], positions="last") as store,
        ReferenceStore(model, ["layer"], make_selection("last")) as oracle,
    ):
        model(ids)
        assert not differences(oracle.activations, store.activations)
    assert torch.equal(store.activations["layer"], model.layer(ids)[:, 1])


def test_the_models_own_input_and_output_can_be_selected_by_its_mask() -> None:
    model, ids = Masked(), torch.tensor([[1, 2, 3, 4]])
    with ActivationStore(model, [":input", ""], positions="last") as store:
        model(ids, torch.tensor([[0, 1, 1, 0]]))
    assert store.activations[":input"].tolist() == [3]
    assert torch.equal(store.activations[""], model.layer(ids)[:, 2])


def test_a_mask_that_leads_to_its_store_does_not_keep_it() -> None:
    class Owner:
        def __init__(self, model: nn.Module) -> None:
            self.mask = torch.ones(1, 4, dtype=torch.int64)
            self.store = ActivationStore(
                model, ["layer"], positions="last", mask=lambda ids: self.mask
            )
            self.store.enable()

    model = Masked()
    owner = Owner(model)
    gone = weakref.ref(owner.store)
    del owner
    gc.collect()
    assert gone() is None
    assert not model.layer._forward_hooks


def test_a_mask_function_that_returns_none_is_an_error() -> None:
    model, ids = Masked(), torch.tensor([[1, 2, 3, 4]])
    with ActivationStore(model, ["layer"], positions="last", mask=lambda ids: None):
        message = message_of(SelectionError, lambda: model(ids))
    assert message == (
        "mask= returned None for a call of the model; it must return a (batch, sequence) tensor of "
        "zeros and ones, such as lambda ids: ids != 0."
    )
    records = stream(model, [ids], ["layer"], positions="last", mask=lambda batch: None)
    assert message_of(SelectionError, lambda: next(records)) == (
        "mask= returned None for a batch; it must return a (batch, sequence) tensor of zeros and "
        "ones, such as lambda batch: batch['input_ids'] != 0."
    )


class CallsItself(nn.Module):
    """A root module that is called within its own call, and then gives fewer positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 2:
            self(ids[:, :2])
        found: Tensor = self.norm(ids[:, :2, None].float())
        return found


def test_after_a_call_within_a_call_the_outer_one_s_tokens_count_again() -> None:
    model = CallsItself()
    with fastcap.ActivationStore(model, ["norm"], positions=-1) as store:
        model(make_ids(3, n_tokens=2))
        assert store.activations["norm"].shape == (3, 1)
        with pytest.raises(SelectionError, match="but the pass has 5 tokens per sample"):
            model(make_ids(3, n_tokens=5))
