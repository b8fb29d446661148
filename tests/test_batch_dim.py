"""`batch_dim`: which dimension of a site's value counts samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import ActivationStore, extract_representations, reference
from fastcap.errors import ArchiveConfigError, ArgumentTypeError, PositionError, ResultError
from fastcap.spec import Positions, Reduce, make_selection
from tests.support.runs import must_equal

N_TOKENS, WIDTH = 5, 8


class SequenceFirst(nn.Module):
    """A transformer whose values are `(sequence, batch, width)`, called with `(batch, sequence)`.

    A row of its result depends on one sample only, so that rows can be told apart.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=False)

    def forward(self, input_ids: Tensor) -> Any:
        return self.block(self.embedding(input_ids.T))


def make_samples(n_samples: int, n_tokens: int = N_TOKENS) -> list[dict[str, Tensor]]:
    ids = torch.randint(50, (n_samples, n_tokens), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row} for row in ids]


def make_mask(n_samples: int) -> Tensor:
    """One real token in the first sample, two in the second, and so on."""
    return (torch.arange(N_TOKENS) <= torch.arange(n_samples)[:, None]).long()


def by_hand(model: nn.Module, samples: list[dict[str, Tensor]]) -> Tensor:
    """`(batch, sequence, width)`, in one pass."""
    with torch.no_grad():
        ids = torch.stack([sample["input_ids"] for sample in samples])
        return model.eval()(ids).transpose(0, 1).contiguous()  # type: ignore[no-any-return]


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"positions": -1},
    {"positions": [3, 0]},
    {"positions": slice(1, 4)},
    {"positions": "last"},
    {"positions": [[0, 2], [1, 1], [4, -1]]},
    {"positions": 3, "seq_dim": 2},
    {"reduce": "mean"},
    {"reduce": lambda acts: acts[:, :2].sum(dim=1)},
    {"dtype": torch.float64},
]


def named(asked: dict[str, Any]) -> str:
    given = (f"{key}={'fn' if callable(value) else value}" for key, value in asked.items())
    return ", ".join(given) or "everything"


@pytest.mark.parametrize("asked", SELECTIONS, ids=named)
@pytest.mark.parametrize("batch_dim", [1, -2])
def test_selections_count_on_the_value_with_its_samples_first(
    asked: dict[str, Any], batch_dim: int
) -> None:
    model, samples = SequenceFirst(), make_samples(3)
    selection = make_selection(**asked)
    mask = make_mask(3) if selection.needs_mask else None
    found = extract_representations(
        model,
        samples,
        ["block"],
        "cpu",
        batch_dim=batch_dim,
        mask=None if mask is None else lambda batch: mask,
        **asked,
    )
    whole = by_hand(model, samples)  # the same of the same values, where the batch is the first
    must_equal({"block": reference.take_selection(whole, selection, mask)}, found)


def test_what_is_unpadded_is_the_tokens_of_one_sample_after_the_other() -> None:
    model, samples = SequenceFirst(), make_samples(3)
    batch = {"input_ids": torch.stack([sample["input_ids"] for sample in samples])}
    mask = make_mask(3)
    [records] = fastcap.stream(
        model,
        [batch],
        ["block"],
        positions="unpadded",
        mask=lambda batch: mask,
        batch_dim=1,
    )
    whole = by_hand(model, samples)
    must_equal({"block": whole[mask.bool()]}, dict(records))
    assert records.lengths("block") == (1, 2, 3)


def test_a_store_delivers_samples_first() -> None:
    model, samples = SequenceFirst().eval(), make_samples(3)
    ids = torch.stack([sample["input_ids"] for sample in samples])
    with ActivationStore(model, ["block"], batch_dim=1) as store, torch.no_grad():
        model(ids)
    must_equal({"block": by_hand(model, samples)}, store.activations)


def test_an_archive_has_samples_first_and_says_so(tmp_path: Path) -> None:
    model, samples = SequenceFirst(), make_samples(7)
    archive = fastcap.extract(model, samples, ["block"], tmp_path / "a", batch_size=3, batch_dim=1)
    must_equal(
        {"block": torch.cat([by_hand(model, samples[at : at + 3]) for at in (0, 3, 6)])},
        {"block": archive["block"][:]},
    )
    assert archive.meta.config["selection"]["batch_dim"] == 1
    again = fastcap.extract(model, samples, ["block"], tmp_path / "a", batch_size=3, batch_dim=1)
    assert len(again) == 7
    with pytest.raises(ArchiveConfigError, match=r"batch_dim: asked 'nothing'"):
        fastcap.extract(model, samples, ["block"], tmp_path / "a", batch_size=3)


def test_an_archive_of_the_first_dimension_is_the_one_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(50, 4))
    samples = [{"input_ids": sample["input_ids"]} for sample in make_samples(4)]
    archive = fastcap.extract(model, samples, ["0"], tmp_path, batch_dim=0)
    assert "batch_dim" not in archive.meta.config["selection"]


def test_values_of_odd_dtypes_are_moved_too() -> None:
    for dtype in (torch.float8_e4m3fn, torch.complex64, torch.bool):
        value = torch.randn(5, 3, 4).to(dtype)
        found = captured(value, positions=[0, 2], batch_dim=1)
        expected = value.view(torch.int8) if dtype.itemsize == 1 else value
        expected = expected.transpose(0, 1)[:, [0, 2]].contiguous().view(dtype)
        must_equal({"0": expected}, {"0": found})


def captured(
    value: Tensor, positions: Positions = None, reduce: Reduce = None, **options: Any
) -> Tensor:
    """What a store keeps of a module that returns its input, beside the oracle."""
    model = nn.Sequential(nn.Identity())
    selection = {"positions": positions, "reduce": reduce, **options}
    store = ActivationStore(model, ["0"], **selection)
    with store, reference.ReferenceStore(model, ["0"], make_selection(**selection)) as oracle:
        model(value)
    must_equal(oracle.activations, store.activations)
    return store.activations["0"]


def test_any_dimension_can_be_the_batch() -> None:
    value = torch.randn(2, 3, 4, 5)
    for dim in range(-4, 4):
        must_equal({"0": value.movedim(dim, 0).contiguous()}, {"0": captured(value, batch_dim=dim)})


def errors() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    yield {"batch_dim": 3}, PositionError, r"\(5, 3, 8\), which has no dimension 3 to count samples"
    yield {"batch_dim": -4}, PositionError, "no dimension -4 to count samples.*batch_dim="
    yield {"batch_dim": "1"}, ArgumentTypeError, "batch_dim must be an int; got '1'"
    yield {"batch_dim": None}, ArgumentTypeError, "batch_dim must be an int; got None"
    yield {"batch_dim": True}, ArgumentTypeError, "batch_dim must be an int; got True"
    moved = r"\(3, 5, 8\) \(batch_dim=1 moved to the front\)"
    yield {"batch_dim": 1, "positions": 5}, PositionError, f"{moved}: position 5 is out of range"
    yield {"batch_dim": 1, "positions": 0, "seq_dim": 3}, PositionError, f"{moved}, .*dimension 3"


@pytest.mark.parametrize(("options", "kind", "text"), list(errors()))
def test_errors_name_the_shape_and_the_way_out(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    model, samples = SequenceFirst(), make_samples(3)
    with pytest.raises(kind, match=text):
        extract_representations(model, samples, ["block"], "cpu", **options)


def test_rows_that_are_not_samples_are_refused_with_the_argument_that_helps() -> None:
    with pytest.raises(ResultError, match=r"shape \(5, 3, 8\).*with batch_dim="):
        extract_representations(SequenceFirst(), make_samples(3), ["block"], "cpu")
