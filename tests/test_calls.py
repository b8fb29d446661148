"""Every call of a module that a pass calls several times, and values from older passes."""

from __future__ import annotations

import tempfile
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import FastcapWarning, reference
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


def test_the_last_call_alone_is_kept_and_the_others_are_counted() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer"], calls="last") as store:
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


# Sites of one call


def run_all(model: Looped, sites: list[str], **options: Any) -> dict[str, list[Tensor]]:
    """The values of two passes, by every way of running them."""
    samples = [{"input_ids": ids} for ids in torch.cat([IDS, IDS + 1])]
    found = [fastcap.extract_representations(model, samples, sites, "cpu", 2, **options)]
    streamed = list(fastcap.stream(model, [IDS, IDS + 1], sites, **options))
    found.append({site: torch.cat([each[site] for each in streamed]) for site in sites})
    with tempfile.TemporaryDirectory() as folder:
        archive = fastcap.extract(model, samples, sites, folder, batch_size=2, **options)
        found.append({site: archive[site][:].clone() for site in archive.sites})
    with fastcap.ActivationStore(model, sites) as store:
        passes = [(model(ids), store.activations)[1] for ids in (IDS, IDS + 1)]
    found.append({site: torch.cat([each[site] for each in passes]) for site in sites})
    return {site: [each[site] for each in found] for site in sites}


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("call", [0, 1, 2, -1])
def test_a_site_may_be_one_of_the_calls(call: int, stops: bool) -> None:
    model, site = Looped(), f"layer@{call}"
    wanted = torch.cat([every_call(model, ids)[call] for ids in (IDS, IDS + 1)])
    options = {"stop_after_last_site": True} if stops else {}
    samples = [{"input_ids": ids} for ids in torch.cat([IDS, IDS + 1])]
    found = fastcap.extract_representations(model, samples, [site], "cpu", 2, **options)  # type: ignore[arg-type]

    must_equal({site: wanted}, found)
    for value in [] if stops else run_all(model, [site, "embedding"])[site]:
        must_equal({site: wanted}, {site: value})
    batches = [{"input_ids": IDS}, {"input_ids": IDS + 1}]
    by_oracle = reference.extract(model, batches, [site], lambda model, b: model(b["input_ids"]))
    must_equal({site: wanted}, by_oracle)


def test_one_calls_parts_inputs_and_patterns_are_sites_too() -> None:
    model = Looped()
    sites = ["layer@1:input", "layer@1:output", "s*@0", "re:^emb.*$@0"]
    with fastcap.ActivationStore(model, sites) as store:
        model(IDS)
    first, second, third = every_call(model)
    must_equal(
        {
            "embedding@0": model.embedding(IDS).detach(),
            "layer@1:input": first,
            "layer@1": second,
            "sometimes@0": model.sometimes(third).detach(),
        },
        store.activations,
    )


def test_a_module_called_on_its_own_begins_anew() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer@0"]) as store:
        for number in range(3):
            model.layer(torch.full((1, 4), float(number)))
        wanted = model.layer(torch.full((1, 4), 2.0)).detach()
        must_equal({"layer@0": wanted}, store.activations)


def test_a_call_that_is_not_made_is_said_with_how_many_there_are() -> None:
    with pytest.warns(FastcapWarning, match=r"'layer@3': .* called 3 times .* last is @2"):
        assert dict(next(fastcap.stream(Looped(), [IDS], ["layer@3"]))) == {}
    planned = fastcap.plan(Looped(), IDS, ["layer@3", "layer@1"], n_samples=2)
    assert "called 3 times" in str(planned)


# What is said of calls that are not kept

SAID = (
    "A pass calls these more than once, and only the last call is kept: 'layer' (3 calls). "
    "'layer@0' is the first call, and 'layer@-1' says that the last is meant; fastcap.stream() "
    "and ActivationStore keep every call with calls='all'."
)


def test_calls_that_are_not_kept_are_told_once() -> None:
    model, samples = Looped(), [{"input_ids": ids} for ids in IDS]
    with pytest.warns(FastcapWarning) as warned:
        found = fastcap.extract_representations(model, samples, ["layer"], "cpu", 1)
    assert [str(each.message) for each in warned] == [SAID]
    must_equal({"layer": every_call(model)[-1]}, found)

    with pytest.warns(FastcapWarning) as warned:
        list(fastcap.stream(model, [IDS] * 3, ["layer", "embedding"]))
    assert [str(each.message) for each in warned] == [SAID]

    store = fastcap.ActivationStore(model, ["layer"])
    store.enable()
    with pytest.warns(FastcapWarning) as warned:
        model(IDS)
    model(IDS)
    store.disable()
    assert [str(each.message) for each in warned] == [SAID]


def test_nothing_is_said_where_calls_are_of_passes_of_their_own() -> None:
    model = Looped(1)
    with fastcap.ActivationStore(model, ["layer"]) as store:
        for _ in range(2):
            model(IDS)
            model.layer(torch.ones(1, 4))
            model.layer(torch.ones(1, 4))
        threads = [threading.Thread(target=model, args=(IDS,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.age("layer") == 0


def test_of_many_sites_five_are_named() -> None:
    model = nn.Sequential(*[nn.Identity()] * 8)
    with pytest.warns(FastcapWarning, match=r"'4' \(8 calls\) and 3 more\. '0@0' is"):
        next(fastcap.stream(model, [torch.ones(1, 1)], [str(number) for number in range(8)]))


# Values of older passes


def test_a_value_of_an_older_pass_has_an_age() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["layer", "sometimes"], calls="last") as store:
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
    with fastcap.ActivationStore(model, ["first", "last"], calls="last") as store:
        model(torch.ones(1, 2))
        assert (store.age("first"), store.age("last")) == (0, 0)


def test_a_pass_that_an_interrupt_ended_leaves_the_count_right() -> None:
    model = Looped()
    with fastcap.ActivationStore(model, ["embedding", "layer"], calls="last") as store:
        handle = model.layer.register_forward_pre_hook(_interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(IDS)
        handle.remove()
        assert store.age("embedding") == 0
        model(IDS)
        assert (store.age("embedding"), store.age("layer")) == (0, 0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
