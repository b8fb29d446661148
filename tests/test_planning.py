"""Plans before runs: bytes are those that the run captures, memory is what it takes."""

from __future__ import annotations

import inspect
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.records import Statistics
from tests.support.datasets import make_ids
from tests.support.models import LanguageModel, TupleBlock, hooks_on
from tests.support.runs import running_on

SITES = ["layers.*", "layers.0.mlp", "layers.1:output[1]", "norm:input", "output_head"]
N_TOKENS, BATCH_SIZE = 6, 4

SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "one": {"positions": -1},
    "slice": {"positions": slice(1, None, 2)},
    "empty slice": {"positions": slice(0, 0)},
    "list": {"positions": [0, 2, -1]},
    "list per sample": {"positions": [[0, 1], [1, 2], [2, 3], [3, 4]]},
    "key": {"positions": "answer"},
    "last": {"positions": "last"},
    "mean": {"reduce": "mean"},
    "callable": {"reduce": lambda acts: acts[..., :2]},
}
DTYPES = [None, torch.bfloat16, torch.float64, torch.complex64]
DEVICES = {"cpu": None, "simulated": lambda: SimulatedDevice(Schedule("late", seed=1))}


def make_model() -> nn.Module:
    return LanguageModel(n_layers=2, block=TupleBlock)


def batch_of(n_samples: int) -> dict[str, Tensor]:
    mask = torch.ones(n_samples, N_TOKENS, dtype=torch.int64)
    mask[:, [1, 3]] = 0  # what positions select is real
    return {
        "input_ids": make_ids(n_samples, N_TOKENS),
        "attention_mask": mask,
        "answer": torch.arange(2 * n_samples).view(n_samples, 2) % N_TOKENS,
    }


def ids_of(n_samples: int) -> dict[str, Tensor]:
    return {"input_ids": make_ids(n_samples, N_TOKENS)}


def run_on(device: Any) -> Any:
    return running_on(None if device is None else device())


def stream_all(model: nn.Module, sizes: Iterable[int], sites: Any, **options: Any) -> Any:
    """Bytes of every record, and the statistics at the end."""
    batches = [batch_of(size) for size in sizes]
    n_bytes = 0
    with fastcap.stream(
        model, batches, sites, model_inputs=["attention_mask"], **options
    ) as records:
        for batch in records:
            n_bytes += sum(record.tensor.nbytes for record in batch.records)
        return n_bytes, records.statistics()


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chosen", SELECTIONS.values(), ids=SELECTIONS)
def test_bytes_are_those_of_the_run(
    chosen: dict[str, Any], dtype: torch.dtype | None, device: Any
) -> None:
    options = {**chosen, "dtype": dtype}
    sizes = [4, 4] if isinstance(chosen.get("positions"), list) else [4, 4, 3]
    # The mean and `:output[1]`, which has no width, do not go together with all of these.
    sites = [site for site in SITES if not site.endswith("[1]") or "reduce" not in chosen]
    model = make_model()
    with run_on(device):
        found = fastcap.plan(
            model,
            batch_of(BATCH_SIZE),
            sites,
            n_samples=sum(sizes),
            model_inputs=["attention_mask"],
            into="loop",
            **options,
        )
        n_bytes, statistics = stream_all(model, sizes, sites, **options)
    assert found.is_exact
    assert found.total_bytes == n_bytes
    assert found.captured_bytes == statistics.captured_bytes
    assert hooks_on(model) == 0


def test_a_model_without_data_is_planned_as_one_with() -> None:
    with torch.device("meta"):
        empty = make_model()
    for chosen in SELECTIONS.values():
        options: dict[str, Any] = {"n_samples": 100, "into": "loop", **chosen}
        options["forward"] = lambda model, batch: model(batch["input_ids"])
        found, expected = (
            fastcap.plan(model, batch_of(4), SITES[:2], **options)
            for model in (empty, make_model())
        )
        assert [vars_of(site) for site in found.sites] == [vars_of(site) for site in expected.sites]


def vars_of(site: Any) -> tuple[Any, ...]:
    return site.name, site.shape, site.dtype, site.pass_bytes


def test_ragged_values_are_planned_as_the_example_has_them() -> None:
    model = make_model()
    found = fastcap.plan(
        model,
        batch_of(4),
        "norm",
        n_samples=8,
        positions="unpadded",
        into="loop",
        model_inputs=["attention_mask"],
    )
    n_bytes, _ = stream_all(model, [4, 4], "norm", positions="unpadded")
    assert found.total_bytes == n_bytes
    assert not found.is_exact
    assert "In all: about " in str(found)


class CallsTwice(nn.Module):
    """Calls one module on everything and then on half of the width."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, acts: Tensor) -> Tensor:
        first: Tensor = self.act(acts)
        second: Tensor = self.act(first[..., :4])
        return second


class FlatThenBatch(nn.Module):
    """Calls one module on rows that are not samples, and then on samples."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, acts: Tensor) -> Tensor:
        self.act(acts.flatten(0, 1))
        found: Tensor = self.act(acts)
        return found


def test_an_earlier_call_whose_rows_are_no_samples_makes_bytes_inexact() -> None:
    found = fastcap.plan(FlatThenBatch(), torch.ones(2, 3, 4), "act", n_samples=5, into="loop")
    assert not found.is_exact


@pytest.mark.parametrize("calls", ["last", "all"])
def test_every_call_is_captured_and_counted(calls: str) -> None:
    model, batch = CallsTwice(), torch.ones(2, 3, 8)
    found = fastcap.plan(model, batch, "act", n_samples=6, calls=calls, into="loop")
    with fastcap.stream(model, [batch] * 3, "act", calls=calls) as stream:
        n_bytes = sum(record.tensor.nbytes for batch in stream for record in batch.records)
        statistics = stream.statistics()
    assert found.sites[0].n_calls == 2
    assert found.captured_bytes == statistics.captured_bytes == 6 * 3 * (8 + 4) * 4
    assert found.total_bytes == n_bytes
    assert ("Leaving the model's device: 864 B" in str(found)) == (calls == "last")


def thirty_two_layers() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(
            nn.Embedding(32_000, 4096), *[nn.Linear(4096, 4096) for _ in range(32)]
        )


def test_thirty_two_layers_of_two_thousand_long_samples_are_4_4_terabytes() -> None:
    """32 layers x 2,048 samples x 4,096 tokens x width 4,096 x 4 bytes."""
    found = fastcap.plan(
        thirty_two_layers(), None, "{1..32}", n_samples=2048, n_tokens=4096, batch_size=16
    )
    assert found.total_bytes == 32 * 2048 * 4096 * 4096 * 4 == 4_398_046_511_104
    assert found.fits is False
    assert "4,398,046,511,104 B (4.4 TB)" in str(found)


# The example


def test_the_example_is_repeated_and_cropped_to_the_batch_and_length_of_the_run() -> None:
    model = make_model()
    for rows, batch_size, n_tokens in [(1, 4, 9), (6, 4, 2), (4, None, None)]:
        found = fastcap.plan(
            model, ids_of(rows), "norm", n_samples=8, batch_size=batch_size, n_tokens=n_tokens
        )
        assert found.sites[0].shape == (4, n_tokens or N_TOKENS, 16)


def test_tuples_and_lists_beside_the_tensors_are_repeated_too() -> None:
    seen = []

    def forward(model: nn.Module, batch: Any) -> Any:
        seen.append((batch["names"], batch["pair"]))
        return model(batch["pair"][0])

    batch = {"pair": (torch.zeros(2, 8), torch.zeros(3)), "names": ["a", "b"], "scale": 2}
    found = fastcap.plan(nn.Linear(8, 2), batch, "", n_samples=9, batch_size=3, forward=forward)
    (names, pair) = seen[0]
    assert names == ["a", "b", "a"]
    assert (pair[0].shape, pair[1].shape) == ((3, 8), (3,))
    assert found.total_bytes == 9 * 2 * 4


def test_without_an_example_there_are_token_ids_and_all_of_them_are_real() -> None:
    found = fastcap.plan(make_model(), None, "norm", n_samples=5, n_tokens=7, positions="last")
    assert found.sites[0].shape == (5, 16)
    assert found.size.n_passes == 1


@pytest.mark.parametrize("run", [fastcap.extract, fastcap.extract_representations])
def test_without_an_example_passes_are_as_large_as_those_of_runs(run: Any) -> None:
    found = fastcap.plan(make_model(), None, "norm", n_samples=100, n_tokens=7)
    assert found.size.batch_size == inspect.signature(run).parameters["batch_size"].default


def test_a_run_of_fewer_samples_than_a_batch_is_one_smaller_pass() -> None:
    found = fastcap.plan(make_model(), ids_of(4), "norm", n_samples=3, batch_size=64)
    assert found.size == fastcap.planning.Size(3, 3)
    assert found.sites[0].shape == (3, N_TOKENS, 16)


def test_the_model_is_left_as_it_was() -> None:
    model = make_model().train()
    before, rng = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    fastcap.plan(model, ids_of(2), "**", n_samples=8)
    assert model.training
    assert hooks_on(model) == 0
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_sites_that_stay_silent_are_said_to() -> None:
    class Wraps(nn.Module):
        def forward(self, acts: Tensor) -> dict[str, Tensor]:
            return {"acts": acts}

    model = nn.Sequential(nn.ReLU(), Wraps())
    found = fastcap.plan(
        model, torch.ones(2, 3), ["0", "1"], n_samples=2, forward=lambda m, x: m(x)
    )
    [reason] = found.silent
    assert reason.startswith("Nothing is captured at site '1': its forward returned a dict")
    assert reason in str(found).replace("\n", " ")


# Memory


def within(share: float, planned: int, found: int) -> bool:
    return abs(planned - found) <= share * found


def most(statistics: Iterable[Statistics]) -> tuple[int, int]:
    seen = list(statistics)
    return max(s.staging_bytes for s in seen), max(s.pinned_bytes for s in seen)


BUDGETS: dict[str, dict[str, Any]] = {
    "default": {},
    "small": {"staging_bytes": 64 << 10, "pinned_bytes": 256 << 10},
    "one chunk": {"staging_bytes": 4096, "pinned_bytes": 4096},
}


@pytest.mark.parametrize("n_passes", [1, 3])
@pytest.mark.parametrize("n_mib", [1, 24], ids=["small records", "large records"])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
def test_staging_and_slots_are_those_of_the_run(
    budget: dict[str, Any], n_mib: int, n_passes: int
) -> None:
    if n_mib > 1 and budget:
        budget = {name: 1024 * n_bytes for name, n_bytes in budget.items()}
    model, batch = nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(4, n_mib << 16)
    with running_on(SimulatedDevice(Schedule("early", seed=1))):
        found = fastcap.plan(
            model, batch, ["0", "1"], n_samples=4 * n_passes, into="loop", **budget
        )
        with fastcap.stream(model, [batch] * n_passes, ["0", "1"], **budget) as stream:
            staging_bytes, pinned_bytes = most(stream.statistics() for _ in stream)
    assert staging_bytes > 0
    assert found.memory.staging_bytes == staging_bytes
    assert found.memory.first_slot_bytes <= pinned_bytes <= found.memory.slot_bytes


def test_a_result_takes_what_was_planned() -> None:
    model, samples = make_model(), [{"input_ids": ids} for ids in make_ids(11, N_TOKENS)]
    found = fastcap.plan(model, ids_of(4), ["layers.*", "norm"], n_samples=11)
    acts = fastcap.extract_representations(
        model, samples, ["layers.*", "norm"], "cpu", batch_size=4
    )
    assert found.memory.result_bytes == sum(
        value.untyped_storage().nbytes() for value in acts.values()
    )
    assert (found.memory.staging_bytes, found.memory.slot_bytes) == (0, 0)
    assert [(row.name, row.ratio) for row in found.compare(acts).rows] == [
        ("result", 1.0),
        ("time", None),
    ]


def test_a_run_into_memory_takes_what_was_planned() -> None:
    model, acts = nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(40, 1 << 17)
    options: dict[str, Any] = {"forward": lambda model, batch: model(batch["acts"])}
    found = fastcap.plan(model, {"acts": acts[:4]}, ["0", "1"], n_samples=40, **options)
    tracemalloc.start()
    try:
        fastcap.extract_representations(
            model, [{"acts": row} for row in acts], ["0", "1"], "cpu", batch_size=4, **options
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.memory.host_bytes == 2 * 40 * 4 * (1 << 17)
    assert within(0.2, found.memory.host_bytes, peak_bytes)


def test_token_ids_that_are_made_up_are_counted_and_their_mask_is_not(tmp_path: Path) -> None:
    found = fastcap.plan(
        make_model(), None, "norm", n_samples=10, n_tokens=6, into="archive", folder=tmp_path
    )
    assert found.memory.beside_bytes == 10 * (6 * 8 + 8 + 8)


@pytest.mark.parametrize("positions", [None, -1, "unpadded"])
def test_an_archive_holds_what_was_planned(tmp_path: Path, positions: Any) -> None:
    model, sites = make_model(), ["layers.0.mlp", "norm"]
    samples = [{key: value[0] for key, value in batch_of(1).items()} for _ in range(10)]
    options: dict[str, Any] = {"positions": positions, "model_inputs": ["attention_mask"]}
    found = fastcap.plan(
        model, batch_of(4), sites, n_samples=10, into="archive", folder=tmp_path, **options
    )
    archive = fastcap.extract(model, samples, sites, tmp_path / "acts", batch_size=4, **options)
    n_bytes = sum(archive[site][sample].nbytes for site in sites for sample in range(10))
    assert found.total_bytes == n_bytes
    on_disk = sum(path.stat().st_size for path in (tmp_path / "acts").rglob("*.safetensors"))
    assert 4096 <= on_disk - found.memory.archive_bytes < 4096 + 100  # the header of one file
    row = found.compare(archive, 0.5).rows[0]
    assert (row.name, row.planned, row.found) == ("disk", found.memory.archive_bytes, on_disk)


def test_a_pass_that_compares_values_is_said_where_an_archive_is_there(tmp_path: Path) -> None:
    model, folder = make_model(), tmp_path / "acts"
    options: dict[str, Any] = {"n_samples": 10, "into": "archive", "folder": folder}
    assert fastcap.plan(model, ids_of(4), "norm", **options).assumed == ()
    samples = [{"input_ids": ids} for ids in make_ids(10, 6)]
    fastcap.extract(model, samples, "norm", folder, batch_size=4)
    [said] = fastcap.plan(model, ids_of(4), "norm", **options).assumed
    assert said.startswith(f"{folder} has an archive.")
    assert "one more, which compares values" in said
    others = {**options, "into": "memory"}
    assert fastcap.plan(model, ids_of(4), "norm", **others).assumed == ()


def test_records_under_way_to_a_loop_take_what_was_planned() -> None:
    model, batch = nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(4, 1 << 17)
    found = fastcap.plan(model, batch, ["0", "1"], n_samples=40, into="loop")
    tracemalloc.start()
    try:
        for records in fastcap.stream(model, [batch] * 10, ["0", "1"]):
            assert len(records) == 2
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert within(0.2, found.memory.result_bytes, peak_bytes)


@pytest.mark.parametrize("n_passes", [1, 10])
def test_records_under_way_to_an_archive_take_at_most_what_was_planned(
    tmp_path: Path, n_passes: int
) -> None:
    """A disk that keeps up leaves less waiting; the first pass waits for its files to be made."""
    model, samples = nn.Sequential(nn.ReLU(), nn.ReLU()), torch.zeros(4 * n_passes, 1 << 18)
    options: dict[str, Any] = {"forward": lambda model, batch: model(batch["acts"])}
    found = fastcap.plan(
        model,
        {"acts": samples[:4]},
        ["0", "1"],
        n_samples=len(samples),
        into="archive",
        folder=tmp_path,
        **options,
    )
    dataset = [{"acts": row} for row in samples]
    tracemalloc.start()
    try:
        fastcap.extract(model, dataset, ["0", "1"], tmp_path / "a", batch_size=4, **options)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    pass_bytes = 2 * 4 * (1 << 20)
    assert found.memory.result_bytes == n_passes * pass_bytes
    assert pass_bytes <= peak_bytes <= 1.2 * found.memory.result_bytes


def test_records_that_are_lent_take_no_memory_beside_the_slots() -> None:
    model, batch = nn.Sequential(*[nn.ReLU() for _ in range(4)]), torch.zeros(3, 1 << 19)
    sites, n_passes = ["0", "1", "2", "3"], 4
    with running_on(SimulatedDevice(Schedule("early", seed=1))):
        found = fastcap.plan(
            model, batch, sites, n_samples=3 * n_passes, into="loop", zero_copy=True
        )
        with fastcap.stream(model, [batch] * n_passes, sites, zero_copy=True) as stream:
            n_lends = max(stream.statistics().lends for _ in stream)
    assert found.memory.result_bytes == 0
    assert n_lends >= 4 * (n_passes - 1)


@pytest.mark.parametrize("lends", [False, True])
def test_a_loop_takes_no_more_slots_than_planned(lends: bool) -> None:
    model, batch = nn.Sequential(*[nn.ReLU() for _ in range(8)]), torch.zeros(4, 8 << 16)
    sites = [str(number) for number in range(8)]
    with running_on(SimulatedDevice(Schedule("late", seed=1))):
        found = fastcap.plan(model, batch, sites, n_samples=24, into="loop", zero_copy=lends)
        with fastcap.stream(model, [batch] * 6, sites, zero_copy=lends) as stream:
            _, pinned_bytes = most(stream.statistics() for _ in stream)
            assert stream.statistics().spilled_bytes == 0
    assert found.memory.first_slot_bytes <= pinned_bytes <= found.memory.slot_bytes


def test_a_plan_is_held_against_its_run() -> None:
    model = make_model()
    found = fastcap.plan(model, ids_of(4), "norm", n_samples=8, into="loop")
    _, statistics = stream_all(model, [4, 4], "norm")
    assert str(found.compare(statistics, 0.25)) == (
        "            planned    found  found / planned\n"
        "captured    3.07 kB  3.07 kB            1.000\n"
        "staging         0 B      0 B\n"
        "slots           0 B      0 B\n"
        "time      not known   250 ms"
    )
    assert [row.ratio for row in found.compare(statistics).rows] == [1.0, None, None, None]


def test_memory_is_compared_while_the_run_has_it() -> None:
    model, batch = nn.ReLU(), torch.zeros(4, 8)
    with running_on(SimulatedDevice(Schedule("early", seed=1))):
        found = fastcap.plan(model, batch, "", n_samples=8, into="loop")
        stream = fastcap.stream(model, [batch] * 2, "")
        next(stream)
        before, after = found.compare(stream.statistics()), None
        list(stream)
        after = found.compare(stream.statistics())
    assert [row.ratio for row in before.rows[:3]] == [1.0, 1.0, 0.8]  # slots: 4 of at most 5
    assert "staging     16.8 MB  given back" in str(after)
