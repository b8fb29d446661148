"""How things print, at a prompt and in a notebook, and how a store reads as a mapping."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcap
from fastcap import ActivationStore
from fastcap.errors import NotCapturedError
from fastcap.progress import open_progress, open_report
from fastcap.rates import Counters
from tests.support.datasets import make_ids, make_samples
from tests.support.errors import message_of
from tests.support.models import LanguageModel

IDS = make_ids(3)


@pytest.fixture
def store() -> Iterator[ActivationStore]:
    model = LanguageModel()
    with ActivationStore(model, ["layers.*", "norm", "layers.0.mlp:input"]) as store:
        model(IDS)
        yield store


# A store as a mapping


def test_a_store_reads_as_a_mapping(store: ActivationStore) -> None:
    assert list(store) == list(store.activations)
    assert len(store) == len(store.activations)
    assert store["norm"] is store.get("norm")
    assert store["norm:output"] is store.get("norm")
    assert all(site in store for site in store)
    assert "norm:output" in store
    assert "layers" not in store
    assert 3 not in store
    assert store._ipython_key_completions_() == list(store)
    assert dict(zip(store, map(store.get, store), strict=True)) == store.activations


def test_a_store_is_true_also_while_it_is_empty() -> None:
    store = ActivationStore(LanguageModel(), ["norm"])
    assert len(store) == 0
    assert store


def test_a_site_without_a_value_is_a_key_error_with_advice(store: ActivationStore) -> None:
    with pytest.raises(KeyError):
        store["layers.0.attn"]
    assert message_of(NotCapturedError, lambda: store["layer.0"]).startswith(
        "Nothing is captured at 'layer.0'. Did you mean 'layers.0'"
    )
    zero: Any = 0
    store.clear()
    assert message_of(NotCapturedError, lambda: store["norm"]) == (
        "Nothing is captured at 'norm': the site has not fired. Run the model while the store is "
        "enabled."
    )
    assert message_of(NotCapturedError, lambda: store[zero]) == (
        f"Nothing is captured at 0. Captured: [] The store has the sites {store._sites()[:5]}."
    )


# What prints


def test_a_store_prints_shapes_and_no_values(store: ActivationStore) -> None:
    first, *lines = repr(store).splitlines()
    assert first == (
        f"ActivationStore(LanguageModel, enabled, {len(store)} captured, sites asked: {len(store)})"
    )
    for line, (site, value) in zip(lines, store.activations.items(), strict=True):
        assert line.split("  ")[1].strip() == site
        assert line.endswith("float32")
        assert str(tuple(value.shape)) in line


def test_a_store_prints_inside_a_pass_and_when_it_has_nothing() -> None:
    model = LanguageModel()
    store = ActivationStore(model, "norm")
    assert repr(store) == "ActivationStore(LanguageModel, not enabled, 0 captured, sites asked: 1)"
    shown: list[str] = []
    model.layers["1"].register_forward_hook(lambda *_: shown.append(repr(store)))
    with store:
        model(IDS)
    assert shown == ["ActivationStore(LanguageModel, enabled, 0 captured, sites asked: 1)"]


def test_a_stream_its_batches_and_records_print() -> None:
    stream = fastcap.stream(LanguageModel(), [{"input_ids": IDS}] * 2, ["norm"])
    assert repr(stream) == ("Stream(LanguageModel, open, batches handed out: 0, sites: ['norm'])")
    records = next(stream)
    shape = tuple(records["norm"].shape)
    assert repr(records.records[0]) == (
        f"Record('norm', shape {shape}, float32, pass_index=0, call_index=0, samples=range(0, 3))"
    )
    assert "handed out: 1" in repr(stream)
    list(stream)
    assert "ended, batches handed out: 2" in repr(stream)
    assert str(shape) in records._repr_html_()
    assert records._ipython_key_completions_() == ["norm"]


def test_sites_print_as_the_tree_of_the_command() -> None:
    sites = fastcap.list_sites(LanguageModel())
    assert repr(sites).splitlines()[0].split() == ['""', "LanguageModel"]
    assert any(line.startswith("  layers.{0..") for line in repr(sites).splitlines())
    assert "layers.{0.." in sites._repr_html_()
    assert sites == tuple(sites)
    assert repr(type(sites)()) == "No sites."


def test_a_plan_prints_as_its_table() -> None:
    plan = fastcap.plan(LanguageModel(), {"input_ids": IDS}, ["norm"], n_samples=9)
    assert repr(plan) == str(plan)
    assert plan._repr_html_().startswith("<pre>9 samples")
    assert isinstance(plan, fastcap.Plan)


def test_html_is_escaped() -> None:
    model = torch.nn.Module()
    model.add_module("<b>", torch.nn.Linear(2, 2))
    model.forward = lambda x: model.get_submodule("<b>")(x)
    store = ActivationStore(model, ["<b>"])
    with store:
        model(torch.ones(1, 2))
    [records] = fastcap.stream(model, [torch.ones(1, 2)], ["<b>"])
    things: list[Any] = [store, records, records.records[0], fastcap.list_sites(model)]
    for thing in things:
        shown = thing._repr_html_()
        assert "&lt;b&gt;" in shown
        assert "<b><" not in shown.replace("<p><b>", "")


# Archives


def test_an_archive_prints_and_pickles_as_its_path(tmp_path: Path) -> None:
    samples = [{**sample, "y": index} for index, sample in enumerate(make_samples(7))]
    archive = fastcap.extract(
        LanguageModel(), samples, ["norm"], tmp_path / "acts", columns=["y"], batch_size=3
    )
    assert repr(archive) == (
        f"Archive({str(tmp_path / 'acts')!r}, samples: 7 of 7, sites: ['norm'])"
    )
    shown = archive._repr_html_()
    assert "<td>norm</td><td>float32</td>" in shown
    assert "<td>label:y</td><td>int64</td><td>()</td>" in shown
    assert archive._ipython_key_completions_() == archive.streams
    values = archive["norm"][:]
    pickled = pickle.dumps((archive, archive["norm"]))
    assert len(pickled) < 1000
    again, norm = pickle.loads(pickled)
    assert torch.equal(again["norm"][:], values)
    assert torch.equal(norm[:], values)
    assert copy.deepcopy(archive).ids == archive.ids


# Progress


class Kernel:
    config = ("IPKernelApp",)


class Notebook:
    @staticmethod
    def get_ipython() -> Kernel:
        return Kernel()


def test_progress_is_quiet_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(True, 10) as advance:
        advance(5)
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_in_a_notebook(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "IPython", Notebook)
    with open_progress(True, 10) as advance:
        advance(10)
    assert "10/10" in capsys.readouterr().err
    with open_report(True, 10) as report:
        report(Counters(n_samples=10))
    assert "10/10" in capsys.readouterr().err
