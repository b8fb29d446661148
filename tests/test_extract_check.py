"""An archive that is there is run against: values that come out differently are refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap.archive.files import LocalFiles
from fastcap.archive.reader import Archive
from fastcap.consumers.comparison import TOLERANCES, Comparison, tolerance_of
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.errors import ArchiveConfigError, ArgumentError, FastcapWarning
from fastcap.extraction import run as run_module
from tests.support.archives import write
from tests.support.datasets import Tokens, TokenStream, make_samples
from tests.support.extracting import check, extract, masked_samples, samples_for
from tests.support.models import LanguageModel
from tests.support.runs import running_on
from tests.test_extract import MASKED, SELECTIONS

SAMPLES = make_samples(8)  # batches of 3, 3 and 2
MASKED_SAMPLES = masked_samples(8)
COLUMNS = ["y", "row", "text"]


@pytest.fixture(autouse=True)
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same fingerprint: only values tell."""
    monkeypatch.setattr(run_module, "describe_run", lambda *_, **__: {"is": "the same"})


def begin(model: nn.Module, root: Path, n_done: int = 1, **options: Any) -> None:
    """Commit the first batches, and stop."""
    samples = options.pop("samples", SAMPLES)

    def stop(done: int, total: int | None) -> None:
        if done >= min(3 * n_done, len(samples)):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        extract(model, samples, root, group_bytes=1, progress=stop, **options)


def files_in(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# The same


ON_ACCELERATORS = ["all", "unpadded", "wider", "unpadded, wider", "wire_dtype_for", "mean"]


@pytest.mark.parametrize(
    ("place", "name"),
    [*(("cpu", name) for name in SELECTIONS), *(("random", name) for name in ON_ACCELERATORS)],
)
def test_what_is_the_same_is_continued_and_returned(name: str, place: str, tmp_path: Path) -> None:
    root, model = tmp_path / "acts", LanguageModel()
    options = {**MASKED, **SELECTIONS[name], "columns": COLUMNS}
    samples = samples_for(SELECTIONS[name], MASKED_SAMPLES)
    memory = {"staging_bytes": 700, "pinned_bytes": 1000}
    with running_on(None if place == "cpu" else SimulatedDevice(Schedule(place, seed=3))):
        begin(model, root, samples=samples, **options, **memory)
        for _ in range(2):
            archive = extract(model, samples, root, **options, **memory)
    check(archive, model, samples, 3, **SELECTIONS[name])


def test_batches_that_could_be_counted_in_two_ways_are_counted_as_in_the_run(
    tmp_path: Path,
) -> None:
    model = LanguageModel()

    def as_lists(samples: list[Any]) -> list[list[int]]:
        return [sample["input_ids"].tolist() for sample in samples]  # 3 of 5, or 5 fields of 3

    def forward(model: nn.Module, batch: list[list[int]]) -> None:
        model(torch.tensor(batch))

    options: dict[str, Any] = {"collate_fn": as_lists, "forward": forward}
    begin(model, tmp_path / "acts", **options)
    for _ in range(2):
        archive = extract(model, SAMPLES, tmp_path / "acts", **options)
    assert len(archive) == len(SAMPLES)


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize("max_samples", [4, None])
def test_the_smaller_last_batch_and_a_cropped_one_are_compared(
    max_samples: int | None, kind: str, tmp_path: Path
) -> None:
    samples = make_samples(8)
    dataset: Any = {"map": Tokens(8), "stream": TokenStream(8)}[kind]
    model = LanguageModel()
    n_batches = -(-(max_samples or 8) // 3)
    for rank in range(n_batches):
        ranks = {"rank": rank, "world_size": n_batches}
        for workers in (0, 1) if rank == 1 else (0, 0):
            options = {"max_samples": max_samples, "num_workers": workers, **ranks}
            archive = extract(model, dataset, tmp_path / "acts", **options)
    check(archive, model, samples, 3, max_samples)


def test_passes_that_end_early_are_compared_and_go_on_ending_early(tmp_path: Path) -> None:
    model = LanguageModel()
    options: dict[str, Any] = {"sites": ["layers.0"], "stop_after_last_site": True}
    begin(model, tmp_path / "acts", **options)
    n_heads: list[int] = []
    model.output_head.register_forward_hook(lambda *_: n_heads.append(1))
    extract(model, SAMPLES, tmp_path / "acts", **options)
    assert len(n_heads) == 1  # of the pass that is compared, which is the first one
    check(Archive(tmp_path / "acts", LocalFiles()), model, SAMPLES, 3)


def test_a_generator_that_gives_the_same_again_is_compared(tmp_path: Path) -> None:
    model, samples = LanguageModel(), make_samples(8)
    for _ in range(2):
        archive = extract(model, iter(samples), tmp_path / "acts")
    check(archive, model, samples, 3)
    with pytest.raises(ArchiveConfigError, match=r"batch:input_ids.*values differ"):
        extract(model, iter(samples[1:]), tmp_path / "acts")
    with pytest.raises(ArchiveConfigError, match="it ends before these samples now"):
        extract(model, iter([]), tmp_path / "acts")


class Remembers(nn.Module):
    """Draws random numbers, and counts its passes in a buffer and beside it."""

    n_passes: Tensor

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.inner = LanguageModel()
        self.out = nn.Identity()
        self.noise = noise
        self.register_buffer("n_passes", torch.zeros(()))

    def forward(self, input_ids: Tensor) -> Tensor:
        self.n_passes += 1
        acts: Tensor = self.inner(input_ids)
        out: Tensor = self.out(acts * (1 + self.noise * torch.randn(acts.shape)))
        return out


def test_random_numbers_and_buffers_are_as_if_nothing_had_been_compared(tmp_path: Path) -> None:
    root, model, samples = tmp_path / "acts", Remembers(), make_samples(8)
    extract(model, samples, root, sites=["inner.norm"])
    model.train()
    before, model.n_passes[...] = torch.get_rng_state(), 7
    extract(model, samples, root, sites=["inner.norm"])
    assert torch.equal(torch.get_rng_state(), before)
    assert model.n_passes == 7
    assert all(module.training for module in model.modules())


# Another


FACTOR = 1.0


class Tunable(LanguageModel):
    """A language model with what no list of parameters shows, and a place to see its output."""

    gate: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.scale = 1.0
        self.register_buffer("gate", torch.ones(1), persistent=False)
        self.tap = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids, attention_mask) * self.scale * self.gate


class Packed(nn.Parameter):
    """As quantisers make them: a subclass of a tensor."""

    def __new__(cls, data: Tensor) -> Any:
        return torch.Tensor._make_subclass(cls, data, False)


def packed(seed: int) -> nn.Module:
    model = Tunable(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = Packed(module.weight.data)
    return model


def ablate_rows(model: Any) -> None:
    with torch.no_grad():
        model.get_submodule("layers.0.attention.out").weight[3:5] = 0


def replace_forward(model: Any) -> None:
    old = model.norm.forward
    model.norm.forward = lambda acts: old(acts) + 1


def steer(model: Any) -> None:
    model.get_submodule("layers.0").register_forward_hook(lambda module, args, output: output + 0.1)


CHANGES: dict[str, Callable[[Any], object]] = {
    "a block of rows of one weight": ablate_rows,
    "an attribute": lambda model: setattr(model, "scale", 2.0),
    "a buffer that is not saved": lambda model: model.gate.fill_(2),
    "a forward method": replace_forward,
    "a hook": steer,
    "a global": lambda model: globals().update(FACTOR=2.0),
}


def scaled(model: Any, batch: Any) -> Any:
    return model.tap(model(batch["input_ids"]) * FACTOR)


@pytest.mark.parametrize("n_done", [1, 3])
@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_values_is_refused_and_nothing_is_written(
    name: str, n_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "FACTOR", 1.0)
    root, model = tmp_path / "acts", Tunable()
    options: dict[str, Any] = {"sites": ["layers.0", "norm", "tap"], "forward": scaled}
    begin(model, root, n_done, **options)
    CHANGES[name](model)
    before = files_in(root)
    with pytest.raises(ArchiveConfigError, match=r"other values of samples 0 to 2 than this run"):
        extract(model, SAMPLES, root, **options)
    assert files_in(root) == before
    assert extract(model, SAMPLES, root, check="fingerprint", **options).is_complete


def test_another_checkpoint_of_a_model_of_tensor_subclasses_is_refused(tmp_path: Path) -> None:
    begin(packed(1), tmp_path / "acts")
    with pytest.raises(ArchiveConfigError, match="other values"):
        extract(packed(2), SAMPLES, tmp_path / "acts")
    extract(packed(1), SAMPLES, tmp_path / "acts")


def test_autocast_is_refused(tmp_path: Path) -> None:
    model = LanguageModel()
    options: dict[str, Any] = {"sites": ["norm"], "dtype": torch.float32}
    begin(model, tmp_path / "acts", **options)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ArchiveConfigError, match="'norm'"),
    ):
        extract(model, SAMPLES, tmp_path / "acts", **options)


@pytest.mark.parametrize("key", ["input_ids", "attention_mask", "y", "row", "text"])
def test_what_is_stored_beside_the_values_is_compared_without_a_pass(
    key: str, tmp_path: Path
) -> None:
    model, samples = LanguageModel(), [dict(sample) for sample in MASKED_SAMPLES]
    options: dict[str, Any] = {**MASKED, "columns": COLUMNS, "positions": "unpadded"}
    begin(model, tmp_path / "acts", samples=MASKED_SAMPLES, **options)
    value = samples[2][key]
    if key == "text":
        samples[2][key] = "other"
    elif key == "attention_mask":
        samples[2][key] = torch.ones_like(value)
    else:
        samples[2][key] = (value + 1) % 2
    handle = model.register_forward_pre_hook(lambda *_: pytest.fail("the model is called"))
    with pytest.raises(ArchiveConfigError, match=f":{key}'"):
        extract(model, samples, tmp_path / "acts", **options)
    handle.remove()


def test_lengths_and_shapes_that_differ_are_said(tmp_path: Path) -> None:
    model = LanguageModel()
    lengths = [3]
    options: dict[str, Any] = {
        "positions": "unpadded",
        "mask": lambda batch: torch.arange(5).expand_as(batch["input_ids"]) < lengths[0],
        "sites": ["norm"],
    }
    begin(model, tmp_path / "acts", **options)
    lengths[0] = 4
    found = r"'norm': its samples have \[4, 4, 4\] rows, then \[3, 3, 3\]"
    with pytest.raises(ArchiveConfigError, match=found):
        extract(model, SAMPLES, tmp_path / "acts", **options)
    with pytest.raises(ArchiveConfigError, match=r"rows of shape \(5, 16\).*then \(16,\)"):
        extract(model, SAMPLES, tmp_path / "acts", sites=["norm"])
    with pytest.raises(ArchiveConfigError, match=r"'layers\.0': it captured nothing then"):
        extract(model, SAMPLES, tmp_path / "acts", **{**options, "sites": ["layers.0"]})


def test_values_that_were_damaged_are_found_and_counted(tmp_path: Path) -> None:
    root, model = tmp_path / "acts", LanguageModel()
    value = extract(model, SAMPLES, root, sites=["norm"])["norm"][1].clone()
    [shard] = root.rglob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[content.index(bytes(value.view(torch.uint8).flatten().tolist())) + 3] ^= 64
    write(shard, bytes(content))
    with pytest.raises(ArchiveConfigError) as caught:
        extract(model, SAMPLES, root, sites=["norm"])
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  'norm': 1 of 240 values differ, by up to ")
    assert lines[2].endswith("If nothing was changed, look for damage: fastcap inspect --verify.")


def test_many_sites_are_a_few_lines(tmp_path: Path) -> None:
    sites = ["**"]
    begin(LanguageModel(seed=1), tmp_path / "acts", sites=sites)
    with pytest.raises(ArchiveConfigError) as caught:
        extract(LanguageModel(seed=2), SAMPLES, tmp_path / "acts", sites=sites)
    lines = str(caught.value).splitlines()
    assert len(lines) == 9
    assert lines[6].endswith(" more differ")
    assert lines[8] == (
        "Run the same as then, choose another directory, or replace it with overwrite=True. "
        "check='fingerprint' goes on without comparing values."
    )


# Several processes


def test_each_process_compares_its_own_first_batch(tmp_path: Path) -> None:
    model, samples = LanguageModel(), make_samples(14)
    for rank in (0, 1, 2):
        begin(model, tmp_path / "acts", samples=samples, rank=rank, world_size=3)
    for rank in (0, 1, 2):
        changed = [dict(sample) for sample in samples]
        changed[3 * rank + 1]["input_ids"] = samples[0]["input_ids"]
        for other in (0, 1, 2):
            if other != rank:
                extract(model, changed, tmp_path / "acts", rank=other, world_size=3)
        with pytest.raises(ArchiveConfigError, match=f"samples {3 * rank} to {3 * rank + 2}"):
            extract(model, changed, tmp_path / "acts", rank=rank, world_size=3)


def test_a_process_without_a_batch_of_its_own_compares_that_of_another(tmp_path: Path) -> None:
    begin(LanguageModel(seed=1), tmp_path / "acts", rank=1, world_size=3)
    with pytest.raises(ArchiveConfigError, match="samples 3 to 5"):
        extract(LanguageModel(seed=2), SAMPLES, tmp_path / "acts", rank=0, world_size=3)


# Rounding


def rounded(model: nn.Module, by: float) -> nn.Module:
    """The model, computing otherwise: each value of its norm is off by a share of itself."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        sign = torch.where(torch.arange(output.shape[-1]) % 2 == 0, 1.0, -1.0).double()
        return output * (1 + by * sign).to(output.dtype)

    model.get_submodule("norm").register_forward_hook(hook)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_another_machine_may_round_differently_and_it_is_recorded(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, tolerance = tmp_path / "acts", TOLERANCES[dtype]
    begin(LanguageModel().to(dtype), root)
    close = rounded(LanguageModel().to(dtype), tolerance / 2)
    with pytest.raises(ArchiveConfigError, match="The difference is as small as rounding"):
        extract(close, SAMPLES, root)
    monkeypatch.setattr(run_module, "device_name", lambda device: "another")
    with (
        pytest.warns(FastcapWarning, match="begun with another set-up: device"),
        pytest.raises(ArchiveConfigError, match="'norm': 240 of 240 values differ"),
    ):
        extract(rounded(LanguageModel().to(dtype), 2 * tolerance), SAMPLES, root)
    with pytest.warns(FastcapWarning, match="begun with another set-up: device"):
        archive = extract(close, SAMPLES, root)
    first, second = (writer.journal.info for writer in archive.writers)
    assert first is not None
    assert second is not None
    assert (first.creator, first.check) == ({}, {})
    assert second.creator == {**archive.meta.creator, "device": "another"}
    assert second.check["samples"] == [0, 3]
    assert list(second.check["rounded"]) == ["norm"]
    assert second.check["rounded"]["norm"]["tolerance"] == tolerance


def test_samples_are_compared_bit_for_bit_on_the_machine_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, ranks = tmp_path / "acts", {"world_size": 2}
    begin(LanguageModel(), root, rank=0, **ranks)
    monkeypatch.setattr(run_module, "device_name", lambda device: "another")
    with pytest.warns(FastcapWarning, match="another set-up"):
        extract(LanguageModel(), SAMPLES, root, rank=1, **ranks)
    off = rounded(LanguageModel(), 1e-6)
    with (
        pytest.warns(FastcapWarning, match="another set-up"),
        pytest.raises(ArchiveConfigError, match="samples 3 to 5"),
    ):
        extract(off, SAMPLES, root, rank=1, **ranks)
    with pytest.warns(FastcapWarning, match="another set-up"):
        extract(off, SAMPLES, root, rank=0, **ranks)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.5])
def test_a_model_that_does_not_repeat_itself_is_told_by_running_it_twice(
    noise: float, tmp_path: Path
) -> None:
    root, samples, model = tmp_path / "acts", make_samples(8), Remembers(noise)
    options: dict[str, Any] = {"sites": ["out"]}
    begin(model, root, samples=samples, **options)
    if noise == 0.5:
        with pytest.raises(ArchiveConfigError, match="gives other values each time it is run"):
            extract(model, samples, root, **options)
    elif noise:
        with pytest.warns(FastcapWarning, match="does not give the same bits twice"):
            extract(model, samples, root, **options)
    n_passes = int(model.n_passes)
    extract(model, samples, root, check="fingerprint", **options)
    assert int(model.n_passes) - n_passes == (0 if noise == 1e-6 else 2)


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="check='all': 'values' runs one batch"):
        extract(LanguageModel(), SAMPLES, tmp_path / "acts", check="all")


# The comparison


def compared(
    stored: list[Tensor], values: Tensor, seed: int | None = None, tolerance: float = 0.0
) -> tuple[int, float, bool]:
    """Different values, the largest difference, and whether it is rounding."""
    comparison = Comparison("a", stored, values.shape)
    flat, edges = values.reshape(-1), [0, values.numel()]
    if seed is not None:
        draw = random.Random(seed)
        edges += [draw.randrange(values.numel()) for _ in range(5)]
    for first, last in zip(sorted(edges), sorted(edges)[1:], strict=False):
        segment: Any = comparison if seed is None else comparison.segment(first, last)
        assert segment.numel() * stored[0].dtype.itemsize == segment.nbytes
        segment.copy_(flat[first:last])
    difference = comparison.difference(tolerance)
    is_rounding = difference is not None and difference.is_rounding
    return comparison.n_different, comparison.most, is_rounding


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_any_segments_of_any_pieces_are_compared_alike(seed: int | None) -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 3, 5)
    for pieces in ([7], [3, 4], [1, 0, 6]):
        stored = list(torch.split(values.clone(), pieces))
        assert compared(stored, values, seed) == (0, 0.0, False)
        stored[-1][-1, 1, 2] += 0.25
        n_different, most, is_rounding = compared(stored, values, seed, 0.9)
        assert (n_different, is_rounding) == (1, True)
        assert most == pytest.approx(0.25)
        assert compared(stored, values, seed, 1e-6)[2] is False
        wide = [piece.double() for piece in stored]
        assert compared(wide, values, seed)[0] == 1


def test_a_row_is_measured_by_itself() -> None:
    values = torch.ones(2, 4)
    values[0] = 1000
    stored = values.clone()
    stored[0, 1] += 10
    assert compared([stored], values, tolerance=0.02) == (1, 10.0, True)
    stored[1, 1] += 0.1
    assert compared([stored], values, tolerance=0.02)[2] is False
    flat = torch.tensor([1000.0, 0.0])  # one value per sample is one row of them all
    assert compared([flat], flat + torch.tensor([0.0, 0.5]), tolerance=0.01)[2] is True


@pytest.mark.parametrize(
    ("stored", "value", "most", "is_rounding"),
    [
        (0.0, -0.0, 0.0, True),
        (1.0, float("nan"), float("inf"), False),
        (float("nan"), 1.0, float("inf"), False),
        (float("inf"), float("-inf"), float("inf"), False),
        (float("inf"), float("inf"), 0.0, False),
    ],
)
def test_zeros_and_what_is_not_finite(
    stored: float, value: float, most: float, is_rounding: bool
) -> None:
    found = compared([torch.tensor([[stored, 1.0]])], torch.tensor([[value, 1.0]]), tolerance=0.5)
    assert found == (int(is_rounding or most > 0), most, is_rounding)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.uint64, torch.float8_e4m3fn], ids=str
)
def test_dtypes_of_all_kinds(dtype: torch.dtype) -> None:
    values = torch.zeros(2, 3).to(dtype)
    stored = torch.tensor([[0, 0, 1], [0, 0, 0]]).to(dtype)
    assert compared([stored], values) == (1, 1.0, False)
    assert compared([stored], stored) == (0, 0.0, False)


def test_the_coarsest_dtype_decides_and_integers_are_equal() -> None:
    assert tolerance_of((torch.float32, torch.float32)) == TOLERANCES[torch.float32]
    assert tolerance_of((torch.float64, torch.float64, torch.bfloat16)) == 0.05
    assert tolerance_of((torch.int64, torch.int64, torch.bfloat16)) == 0.0
    assert tolerance_of((torch.float32, torch.int8)) == TOLERANCES[torch.float32]
