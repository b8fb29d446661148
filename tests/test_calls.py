"""Every call of a module that a pass calls several times, and values from older passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.errors import ArgumentError
from tests.support.errors import message_of
from tests.support.runs import must_equal, running_on

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Looped(nn.Module):
    """Calls one layer as often as it is told, and another one sometimes."""

    def __init__(self, n_calls: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer = nn.Linear(4, 4)
        self.sometimes = nn.Linear(4, 4)
        self.n_calls = n_calls
        self.takes_branch = True

    def forward(self, input_ids: Tensor) -> Tensor:
        acts: Tensor = self.embedding(input_ids)
        for _ in range(self.n_calls):
            acts = self.layer(acts)
        return self.sometimes(acts) if self.takes_branch else acts


def every_call(model: Looped, ids: Tensor = IDS) -> list[Tensor]:
    acts = model.embedding(ids)
    outputs = []
    for _ in range(model.n_calls):
        acts = model.layer(acts)
        outputs.append(acts.detach())
    return outputs


@pytest.mark.parametrize("zero_copy", [False, True])
@pytest.mark.parametrize("kind", ["late", "early"])
def test_a_store_keeps_every_call_in_order(kind: str, zero_copy: bool) -> None:
    model = Looped()
    with (
        running_on(SimulatedDevice(Schedule(kind))),
        fastcap.ActivationStore(
            model, ["layer"], calls="all", zero_copy=zero_copy, staging_bytes=512, pinned_bytes=512
        ) as store,
    ):
        model(IDS)
        found = store.calls("layer")
        value = store.get("layer")
    for number, want in enumerate(every_call(model)):
        must_equal({"layer": want}, {"layer": found[number]})
    assert len(found) == 3
    assert value is found[-1]
    assert all(a is b for a, b in zip(store.calls("layer"), found, strict=True))


def test_calls_of_several_passes_are_kept_until_clear() -> None:
    model = Looped(2)
    with fastcap.ActivationStore(model, ["layer"], calls="all") as store:
        model(IDS)
        model(IDS + 1)
        assert len(store.calls("layer")) == 4
        store.clear()
        assert store.calls("layer") == []
        model(IDS)
    want = every_call(model)
    for number, got in enumerate(store.calls("layer")):
        must_equal({"layer": want[number]}, {"layer": got})


def test_the_last_call_alone_is_kept_by_default_and_the_others_are_counted() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer"]) as store:
        model(IDS)
        [only] = store.calls("layer")
        assert store.get("layer") is only
    assert store.statistics().superseded_bytes == 2 * only.nbytes
    assert store.calls("sometimes") == []


@pytest.mark.parametrize("calls", ["last", "all"])
def test_records_have_the_index_of_their_call(calls: str) -> None:
    model = Looped()
    for records in fastcap.stream(model, [IDS, IDS + 1], ["layer", "sometimes"], calls=calls):
        want = every_call(model, IDS + records.pass_index)
        numbers = [record.call_index for record in records.records if record.site == "layer"]
        assert numbers == ([0, 1, 2] if calls == "all" else [2])
        for number, got in zip(numbers, records.calls("layer"), strict=True):
            must_equal({"layer": want[number]}, {"layer": got})
        assert records["layer"] is records.calls("layer")[-1]
        assert len(records.calls("sometimes")) == 1
        assert list(records) == ["layer", "sometimes"]


def test_each_step_of_generate_is_kept() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=16,
        n_head=2,
        vocab_size=32,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    site = "transformer.h.1"
    with fastcap.ActivationStore(model, [site], calls="all") as store:
        ids = model.generate(
            torch.tensor([[3, 4, 5]]), max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    shapes = [tuple(step.shape) for step in store.calls(site)]
    assert ids.shape == (1, 7)
    assert shapes == [(1, 3, 16), (1, 1, 16), (1, 1, 16), (1, 1, 16)]


def test_calls_must_be_last_or_all() -> None:
    expected = "calls must be 'last' (the last call of each module) or 'all'; got 'every'."
    model = Looped()
    assert expected == message_of(
        ArgumentError, lambda: fastcap.ActivationStore(model, ["layer"], calls="every")
    )
    assert expected == message_of(
        ArgumentError, lambda: fastcap.stream(model, [IDS], ["layer"], calls="every")
    )


# Values of older passes


def test_a_value_of_an_older_pass_has_an_age() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer", "sometimes"]) as store:
        assert store.age("sometimes") is None
        model(IDS)
        assert (store.age("layer"), store.age("sometimes")) == (0, 0)
        model.takes_branch = False
        model(IDS)
        model(IDS)
        assert (store.age("layer"), store.age("sometimes")) == (0, 2)
        store.clear()
        assert store.age("sometimes") is None
    assert store.age("no site") is None


def test_the_input_of_the_model_belongs_to_the_pass_that_it_begins() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, [":input", ""], positions=-1) as store:
        model(IDS)
        model(IDS + 1)
        assert (store.age(":input"), store.age("")) == (0, 0)
        must_equal({"ids": IDS[:, -1] + 1}, {"ids": store.activations[":input"]})


def test_every_input_of_a_looped_module_is_kept() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer:input"], calls="all") as store:
        model(IDS)
    want = [model.embedding(IDS).detach(), *every_call(model)[:-1]]
    for one, other in zip(want, store.calls("layer:input"), strict=True):
        must_equal({"layer": one}, {"layer": other})


class Nested(nn.Module):
    """Calls itself once, and its layer before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, acts: Tensor, depth: int = 1) -> Tensor:
        acts = self.first(acts) if depth else acts
        acts = self(acts, depth - 1) if depth else acts
        result: Tensor = self.last(acts)
        return result


def test_a_call_of_the_model_within_a_call_is_no_pass_of_its_own() -> None:
    model = Nested()
    with fastcap.ActivationStore(model, ["first", "last"]) as store:
        model(torch.ones(1, 2))
        assert (store.age("first"), store.age("last")) == (0, 0)


def test_a_pass_that_an_interrupt_ended_leaves_the_count_right() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["embedding", "layer"]) as store:
        handle = model.layer.register_forward_pre_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IDS)
        handle.remove()
        assert store.age("embedding") == 0
        model(IDS)
        assert (store.age("embedding"), store.age("layer")) == (0, 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
