"""A dimension that only happens to be as long as the batch: found out before rows are mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import extract_representations
from fastcap.errors import ResultError
from tests.support.runs import must_equal
from tests.test_batch_dim import SequenceFirst, by_hand, make_mask, make_samples

N = 5  # samples, and whatever else is to be taken for them


class Counted(nn.Module):
    """A model of one site, `0`, that counts its passes and draws random numbers in each."""

    n_seen: Tensor

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.add_module("0", make)
        self.register_buffer("n_seen", torch.zeros(()))
        self.sizes: list[int] = []

    def forward(self, acts: Tensor) -> Any:
        self.sizes.append(len(acts))
        self.n_seen += torch.rand(())
        return self.get_submodule("0")(acts)


class FirstLast(nn.Module):
    """Swaps the first two dimensions, as sequence-first blocks have them."""

    def forward(self, acts: Tensor) -> Tensor:
        return acts.transpose(0, 1)


def run(model: nn.Module, data: Tensor, site: str = "0", **options: Any) -> Tensor:
    options.setdefault("forward", lambda model, batch: model(batch))
    return extract_representations(model, list(data), [site], "cpu", **options)[site]


def test_a_sequence_first_block_with_as_many_tokens_as_samples() -> None:
    model, samples = SequenceFirst(), make_samples(N)
    with pytest.raises(ResultError) as caught:
        extract_representations(model, samples, ["block"], "cpu")
    assert str(caught.value) == (
        "Site 'block' produced shape (5, 5, 8) for 5 samples and (5, 4, 8) for 4: dimension 0 does "
        "not count samples, so its rows cannot be matched to samples. Pass batch_dim=1, or receive "
        "it batch by batch with fastcap.stream()."
    )
    found = extract_representations(model, samples, ["block"], "cpu", batch_dim=1)
    must_equal({"block": by_hand(model, samples)}, found)


def named(asked: dict[str, Any]) -> str:
    given = (f"{key}={'fn' if callable(value) else value}" for key, value in asked.items())
    return ", ".join(given) or "everything"


@pytest.mark.parametrize(
    "asked",
    [
        {"positions": -1},
        {"positions": [0, 4]},
        {"positions": "last"},
        {"positions": [[0]] * N},
        {"reduce": "mean"},
        {"reduce": lambda acts: acts.sum(dim=1)},
    ],
    ids=named,
)
def test_no_selection_hides_it(asked: dict[str, Any]) -> None:
    model, samples = SequenceFirst(), make_samples(N)
    if asked.get("positions") == "last" or asked.get("reduce") == "mean":
        asked["mask"] = lambda batch: make_mask(len(batch["input_ids"]))
    with pytest.raises(ResultError, match="Pass batch_dim=1"):
        extract_representations(model, samples, ["block"], "cpu", **asked)
    extract_representations(model, samples, ["block"], "cpu", batch_dim=1, **asked)


def test_a_batch_dim_that_is_wrong_is_refused_too() -> None:
    model = Counted(nn.Identity())
    with pytest.raises(ResultError, match=r"dimension 1 does not .* Pass batch_dim=0"):
        run(model, torch.randn(N, N, 3), batch_dim=1)


def test_an_archive_is_refused_before_anything_is_committed(tmp_path: Path) -> None:
    model, samples = SequenceFirst(), make_samples(2 * N)
    with pytest.raises(ResultError, match="Pass batch_dim=1"):
        fastcap.extract(model, samples, ["block"], tmp_path, batch_size=N)
    assert not list(tmp_path.iterdir())
    archive = fastcap.extract(model, samples, ["block"], tmp_path, batch_size=N, batch_dim=1)
    expected = torch.cat([by_hand(model, samples[:N]), by_hand(model, samples[N:])])
    must_equal({"block": expected}, {"block": archive["block"][:]})


def test_states_of_as_many_layers_as_samples() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.LSTM(3, 4, num_layers=N, batch_first=True)).eval(), None
    data = torch.randn(N, 7, 3)
    with pytest.raises(ResultError, match="Pass batch_dim=1"):
        run(model, data, "0:output[1][0]")
    with torch.no_grad():
        expected = model(data)[1][0].transpose(0, 1).contiguous()  # (layers, batch, hidden)
    must_equal({"": expected}, {"": run(model, data, "0:output[1][0]", batch_dim=1)})
    last = run(model, data, "0:output[1][0]", reduce=lambda states: states[-1])
    must_equal({"": expected[:, -1].contiguous()}, {"": last})  # whose rows are samples


def test_as_many_channels_as_samples_are_no_matter() -> None:
    model, data = Counted(nn.Conv2d(2, N, 3, padding=1)).eval(), torch.randn(2 * N, 2, N, N)
    found = run(model, data, batch_size=N)
    assert model.sizes == [N, N - 1, N]  # one pass more, of one sample fewer, and only once
    with torch.no_grad():
        expected = torch.cat(
            [model.get_submodule("0")(data[:N]), model.get_submodule("0")(data[N:])]
        )
    must_equal({"": expected}, {"": found})


def test_attention_weights_of_as_many_heads_and_tokens_as_samples() -> None:
    data = torch.randn(N, N, N, N)
    must_equal({"": data}, {"": run(Counted(nn.Identity()), data)})
    mixed = data @ data
    must_equal(
        {"": mixed[:, :, -1].contiguous()},
        {"": run(Counted(nn.Identity()), mixed, positions=-1, seq_dim=2)},
    )


def test_a_batch_of_one_is_the_same_either_way() -> None:
    model = Counted(FirstLast())
    data = torch.randn(3, 1, 4)
    must_equal({"": data}, {"": run(model, data, batch_size=1)})
    assert model.sizes == [1, 1, 1]


def test_shapes_that_say_it_cost_no_pass_and_nothing_is_changed() -> None:
    model = Counted(nn.Identity())
    run(model, torch.randn(2 * N, 3, 4), batch_size=N)
    assert model.sizes == [N, N]
    seen: list[Any] = []
    for n_tokens in (3, N):
        torch.manual_seed(0)
        model = Counted(nn.Identity())
        run(model, torch.ones(N, n_tokens, 4))
        seen.append((model.n_seen.item(), torch.rand(()).item()))
    assert model.sizes == [N, N - 1]
    assert seen[0] == seen[1]


def test_rows_without_any_dimension_of_samples() -> None:
    model = nn.Sequential(nn.Identity(), nn.Identity())
    table = torch.randn(N, N)
    with pytest.raises(ResultError, match=r"no dimension of it counts samples.*Capture another"):
        run(model, torch.randn(N, 3), "1", forward=lambda model, batch: model[1](table))


def test_a_reduce_that_moves_samples_away() -> None:
    with pytest.raises(ResultError, match="what is selected of it has 5 rows for both"):
        run(
            nn.Sequential(nn.Identity()),
            torch.randn(N, N, 3),
            reduce=lambda acts: acts.transpose(0, 1),
        )


class Opaque:
    def __init__(self, samples: list[Tensor]) -> None:
        self.acts = torch.stack(samples)


def test_what_cannot_be_cut_or_run_with_fewer_is_not_checked() -> None:
    model, data = nn.Sequential(FirstLast()), torch.randn(N, N, 3)
    found = run(model, data, collate_fn=Opaque, forward=lambda model, batch: model(batch.acts))
    must_equal({"": data.transpose(0, 1).contiguous()}, {"": found})
    found = run(model, data, forward=lambda model, batch: model(batch.view(N, N, 3)))
    must_equal({"": data.transpose(0, 1).contiguous()}, {"": found})


class Widths(fastcap.Consumer):
    """Notes how many samples it is told of."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def begin(self, n_samples: int) -> None:
        self.found.append(n_samples)

    def end(self, finished: Any) -> None:
        pass


def test_batches_that_do_not_say_how_many_samples_they_have() -> None:
    batches = [Opaque([torch.ones(3)] * n) for n in (4, 2)]
    asked: dict[str, Any] = {
        "forward": lambda model, batch: model(batch.acts),
        "n_samples": lambda batch: len(batch.acts),
    }
    model = nn.Sequential(nn.Identity())
    found = [records.samples for records in fastcap.stream(model, batches, ["0"], **asked)]
    assert found == [range(4), range(4, 6)]
    consumer = Widths()
    for _ in fastcap.stream(model, batches, ["0"], consumer=consumer, **asked):
        pass
    assert consumer.found == [4, 2]


@pytest.mark.parametrize(
    ("n_samples", "text"),
    [
        (3, "n_samples must be a callable on the batch that returns how many samples it has"),
        (lambda batch: None, "n_samples of a batch must be an int; got None"),
        (lambda batch: -1, "n_samples of a batch must be at least 0; got -1"),
    ],
)
def test_a_number_of_samples_that_is_none(n_samples: Any, text: str) -> None:
    with pytest.raises(fastcap.FastcapError, match=text):
        list(fastcap.stream(nn.Identity(), [torch.ones(2)], [""], n_samples=n_samples))
