"""`fastcap.bench.overhead`: what is run, in which order, and that nothing wrong goes unseen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from fastcap.bench import Case, make_case, overhead, timing
from fastcap.bench.equality import Judge, gathered, same_bytes
from fastcap.bench.overhead import find_ways, measure
from fastcap.bench.ways import BASELINE, WAYS, collect_pinned, pinned_hook, ways_for
from fastcap.errors import ArgumentError, BatchError, SiteNotFoundError
from fastcap.reference import differences
from tests.support.devices import LoggedStreams

WIDTH = 8


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full collection between runs takes long in a process that has run a whole test suite."""
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)


def model_of() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())


def batches_of(n_batches: int = 3) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(10, (4, 5))} for _ in range(n_batches)]


SELECTIONS = [{}, {"positions": -1}, {"positions": slice(0, 3)}, {"positions": [0, -1]}]


@pytest.mark.parametrize("options", [*SELECTIONS, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("name", [name for name in ways_for("cpu") if name != BASELINE])
def test_every_way_equals_the_oracle(name: str, options: dict[str, object]) -> None:
    case = make_case(model_of(), batches_of(), ["1", "2:input", "2"], **options)  # type: ignore[arg-type]
    outcome = WAYS[name](case)
    values = gathered(outcome) if isinstance(outcome, Iterator) else outcome
    assert differences(case.oracle(), dict(values)) == []


@pytest.mark.parametrize("options", SELECTIONS, ids=str)
def test_the_pinned_hook_equals_the_oracle_and_orders_its_copies(
    options: dict[str, object],
) -> None:
    case = make_case(model_of(), batches_of(1), ["1"], **options)  # type: ignore[arg-type]
    streams = LoggedStreams()
    assert differences(case.oracle(), dict(collect_pinned(case, streams.abilities()))) == []
    assert streams.log == [
        "event 1 on default",
        "copy stream 1 waits for event 1",
        "enter copy stream 1",
        "leave copy stream 1",
        "host waits for copy stream 1",
    ]


def test_a_short_last_batch_is_measured_too() -> None:
    batches = [torch.randint(10, (n, 5)) for n in (4, 4, 1)]
    measured = overhead(model_of(), batches, list(ways_for("cpu"))[1:], sites=["1"], rounds=2)
    assert measured.is_equal
    assert measured.n_samples == 9
    assert measured.n_passes == 3
    assert measured.captured_bytes == 9 * 5 * WIDTH * 4


def test_ways_take_turns_forwards_and_backwards() -> None:
    log: list[str] = []

    def logged(name: str) -> object:
        def way(case: Case) -> dict[str, Tensor]:
            log.append(name)
            return case.oracle()

        return way

    ways = {name: logged(name) for name in ("a", "b")}
    measured = overhead(model_of(), batches_of(1), ways, sites=["1"], rounds=3)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab"  # the first two are compared, not timed
    assert [len(secs) for secs in measured.secs.values()] == [3, 3, 3]
    assert list(measured.secs) == [BASELINE, "a", "b"]
    assert set(measured.ratios) == {"a", "b"}


def test_a_hook_that_aliases_what_the_model_changes_is_counted() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True))
    measured = overhead(model, [torch.randn(4, WIDTH)] * 2, sites=["0", "1"], rounds=3)
    assert measured.n_mismatches == {"hook": 4, "fastcap": 0}  # site 0, of four runs
    assert measured.problems["fastcap"] == ()
    assert measured.problems["hook"][0].startswith("0: ")
    assert not measured.is_equal


def test_a_way_of_ones_own_may_hand_out_batches() -> None:
    def way(case: Case) -> Iterator[dict[str, Tensor]]:
        for batch in case.batches:
            yield {"0": case.model[0](batch)}  # type: ignore[index]

    def off_by_one(case: Case) -> Iterator[dict[str, Tensor]]:
        for values in way(case):
            yield {"0": values["0"] + 1}

    model = nn.Sequential(nn.Identity())
    batches = [torch.full((2, 3), float(i)) for i in range(3)]
    ways = {"right": way, "wrong": off_by_one}
    measured = overhead(model, batches, ways, sites=["0"], rounds=2)
    assert measured.n_mismatches == {"right": 0, "wrong": 3}


def test_a_way_that_drops_a_site_is_counted() -> None:
    case = make_case(model_of(), batches_of(), ["1", "2"])
    judge = Judge(case.oracle())
    judge.check("some", {"1": judge.expected["1"]})
    assert judge.n_mismatches == {"some": 1}
    assert judge.problems["some"] == ["sites ['1'], expected ['1', '2']"]


def test_a_difference_in_a_later_run_is_seen() -> None:
    judge = Judge({"a": torch.zeros(3)})
    judge.check("late", {"a": torch.zeros(3)})
    judge.check("late", {"a": torch.tensor([0.0, -0.0, 0.0])})
    judge.check("late", {"a": torch.tensor([-0.0])}, is_tail=True)
    assert judge.problems["late"] == ["a: 1 bytes differ"]
    assert judge.n_mismatches == {"late": 2}


def test_equal_bytes_include_views_whose_bytes_start_anywhere() -> None:
    whole = torch.arange(9, dtype=torch.uint8)
    assert same_bytes({"a": whole[1:]}, {"a": whole[1:].clone()})
    assert same_bytes({"a": torch.empty(0, 3)}, {"a": torch.empty(0, 3)})


def test_rounds_are_reported_and_the_limit_ends_them() -> None:
    seen: list[int] = []
    case = make_case(model_of(), batches_of(1), ["1"])
    measured = measure(
        case, find_ways(None), 9, limit_secs=0.0, on_round=lambda index, secs: seen.append(index)
    )
    assert seen == [0, 1]
    assert len(measured.secs[BASELINE]) == 2


def test_the_models_flags_are_as_before() -> None:
    model = model_of().train()
    overhead(model, batches_of(1), sites=["1"], rounds=2)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_measured_is_an_error_that_says_why() -> None:
    model, batches = model_of(), batches_of(1)
    with pytest.raises(ArgumentError, match="batches is empty: give at least one"):
        overhead(model, [], sites=["1"])
    with pytest.raises(ArgumentError, match="sites is empty"):
        overhead(model, batches, sites=[])
    with pytest.raises(SiteNotFoundError, match="Module '9' not found"):
        overhead(model, batches, sites=["9"])
    with pytest.raises(ArgumentError, match="rounds must be at least 2"):
        overhead(model, batches, sites=["1"], rounds=1)
    with pytest.raises(ArgumentError, match=r"No way is named 'hok'. There are 'baseline', 'hook'"):
        overhead(model, batches, "hok", sites=["1"])
    with pytest.raises(ArgumentError, match=r"'baseline', which is always measured. Leave it out"):
        overhead(model, batches, [BASELINE], sites=["1"])
    with pytest.raises(ArgumentError, match="Measure with an int, a slice or a list of ints"):
        overhead(model, batches, sites=["1"], positions="last")
    with pytest.raises(ArgumentError, match=r"has none. Measure it on an accelerator"):
        pinned_hook(make_case(model, batches, ["1"]))
    uneven = [torch.randint(10, (n, 5)) for n in (1, 4)]
    with pytest.raises(ArgumentError, match=r"have \[1, 4\] samples.*or measure .fastcap stream"):
        overhead(model, uneven, sites=["1"], rounds=2)
    with pytest.raises(BatchError, match="how many samples a batch has"):
        _ = make_case(
            nn.Sequential(nn.Identity()), [object()], ["0"], forward=lambda model, batch: None
        ).sizes


def test_a_site_that_gives_no_tensor_is_an_error_with_the_next_step() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.other = nn.Identity(), nn.Identity(), nn.Identity()

        def forward(self, acts: Tensor) -> Tensor:
            return self.used(acts)  # type: ignore[no-any-return]

    batches = [torch.ones(2, 3)]
    with pytest.raises(ArgumentError, match=r"Site 'idle' gave no tensor in a pass\. Leave it out"):
        overhead(Idle(), batches, sites=["used", "idle"])
    with pytest.raises(ArgumentError, match=r"'idle' gave no tensor in a pass, nor did 1 more\."):
        overhead(Idle(), batches, sites=["idle", "other"])


def test_a_site_that_is_silent_in_a_later_batch_is_found_before_anything_is_measured() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.site = nn.Identity()

        def forward(self, acts: Tensor) -> Tensor:
            return self.site(acts) if acts.sum() > 0 else acts

    batches = [torch.ones(2, 3), torch.zeros(2, 3)]
    with pytest.raises(ArgumentError, match=r"Site 'site' gave no tensor in a pass\."):
        overhead(Sometimes(), batches, sites=["site"])


def test_fastcap_does_not_import_this_and_this_imports_no_extra() -> None:
    program = (
        "import sys, torch, torch.utils.data\n"
        "before = set(sys.modules)\n"
        "import fastcap\n"
        "assert 'fastcap.bench' not in sys.modules\n"
        "import fastcap.bench, fastcap.bench.page\n"
        "added = set(sys.modules) - before\n"
        "assert not added & {'matplotlib', 'pytest', 'rich', 'transformers', 'typer'}, added\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class Odd(nn.Module):
    """Does something to its batches or its values that makes runs differ."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.site, self.n_passes = what, nn.Linear(WIDTH, WIDTH), 0

    def forward(self, acts: Tensor) -> Tensor:
        self.n_passes += 1
        if self.what == "keeps":
            acts = acts + self.n_passes
        elif self.what == "draws":
            acts = nn.functional.dropout(acts, training=True)
        else:
            acts.add_(1)
        return self.site(acts)  # type: ignore[no-any-return]


@pytest.mark.parametrize("what", ["keeps", "draws", "changes"])
def test_a_model_that_does_not_repeat_is_blamed_and_not_the_ways(what: str) -> None:
    with pytest.raises(ArgumentError, match="'site' the model gives other values when it is given"):
        overhead(Odd(what), [torch.ones(4, WIDTH)] * 2, sites=["site"], rounds=2)


def test_dropout_in_train_mode_is_off_as_in_every_run() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)).train()
    assert overhead(model, [torch.ones(4, WIDTH)] * 2, sites=["1"], rounds=2).is_equal
    assert model[1].training


def test_a_way_that_returns_no_tensors_is_told_what_to_return() -> None:
    with pytest.raises(ArgumentError, match=r"'mine' returned NoneType\. A way returns a mapping"):
        overhead(model_of(), batches_of(1), {"mine": lambda case: None}, sites=["1"])
    with pytest.raises(ArgumentError, match=r"'mine' is 3, and not a function of a case"):
        overhead(model_of(), batches_of(1), {"mine": 3}, sites=["1"])
    with pytest.raises(ArgumentError, match=r"of your own are given by name, such as \{'mine'"):
        overhead(model_of(), batches_of(1), [WAYS["hook"]], sites=["1"])  # type: ignore[list-item]


def test_a_way_that_leaves_hooks_is_refused() -> None:
    def forgetful(case: Case) -> dict[str, Tensor]:
        for each in case.bound:
            each.module.register_forward_hook(lambda *_: None)
        return case.oracle()

    with pytest.raises(ArgumentError, match=r"'forgetful' left 2 hooks on the model"):
        overhead(model_of(), batches_of(1), {"forgetful": forgetful}, sites=["1", "2"])


def test_a_way_may_leave_values_on_their_device() -> None:
    class Elsewhere(Tensor):
        """Cannot be compared with a tensor on the host, as on an accelerator."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is Tensor.cpu:
                return args[0].as_subclass(Tensor)
            if func is torch.equal:
                raise RuntimeError("Expected all tensors to be on the same device")
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]

    judge = Judge({"a": torch.zeros(3)})
    for _ in range(2):
        judge.check("mine", {"a": torch.zeros(3).as_subclass(Elsewhere)})
    assert judge.n_mismatches == {"mine": 0}


def test_a_compiled_model_is_measured_under_the_names_without_wrappers() -> None:
    model = torch.compile(model_of(), backend="eager")
    measured = overhead(model, batches_of(1), sites=["1", "2:input"], rounds=2)  # type: ignore[arg-type]
    assert measured.sites == ("1", "2:input")
    assert measured.is_equal


def test_batches_of_two_lengths_are_measured_where_their_values_make_one_tensor() -> None:
    batches = [torch.randint(10, (4, n_tokens)) for n_tokens in (5, 7)]
    assert overhead(model_of(), batches, sites=["1"], positions=-1, rounds=2).is_equal
    with pytest.raises(ArgumentError, match=r"'1' gives values of shape \(4, 5, 8\), \(4, 7, 8\)"):
        overhead(model_of(), batches, sites=["1"], rounds=2)


def test_a_number_for_a_whole_batch_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            return acts.mean()

    with pytest.raises(ArgumentError, match=r"'0' gives values of shape \(\), which do not make"):
        overhead(nn.Sequential(Mean()), [torch.ones(4, WIDTH)], sites=["0"], rounds=2)


def test_values_of_two_dtypes_and_of_one_sample_are_counted_in_their_own_bytes() -> None:
    class Narrow(nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            return acts.bfloat16()

    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Narrow())
    measured = overhead(model, [torch.ones(1, WIDTH)] * 3, sites=["0", "1"], rounds=2)
    assert measured.captured_bytes == 3 * WIDTH * (4 + 2)
    assert measured.is_equal


def test_a_batch_without_a_number_of_samples_is_refused_before_anything_runs() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH))

    def forward(model: nn.Module, batch: object) -> None:
        raise AssertionError("this ran")

    with pytest.raises(BatchError, match="how many samples a batch has"):
        overhead(model, [object()], ["hook"], sites=["0"], forward=forward)


def test_passes_cost_a_hook_nothing_that_its_own_loop_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entered: list[str] = []

    @contextmanager
    def counted() -> Iterator[None]:
        entered.append("uncompiled")
        yield

    monkeypatch.setattr("fastcap.bench.case.uncompiled", counted)
    case = make_case(model_of(), batches_of(5), ["1"])
    assert len(list(case.passes())) == 5
    assert entered == ["uncompiled"]
    assert len(list(case.passes(is_compiled=True))) == 5
    assert entered == ["uncompiled"]
