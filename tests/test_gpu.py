"""On a real CUDA GPU: windows forced open, sanitizer, allocator, ends with copies in flight.

The contract suite runs there too (`tests/test_device_contract.py`). One command: `make gpu-test`.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import reference
from fastcap.devices import accelerator
from fastcap.reference import ReferenceStore
from fastcap.spec import make_selection
from tests.support.runs import draw_any, must_equal
from tests.support.sanitizer import SCRIPT
from tests.support.soak import play

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, none is here"),
    pytest.mark.filterwarnings(
        "ignore:Nothing is captured:fastcap.FastcapWarning",
        "ignore:A pass calls these:fastcap.FastcapWarning",
    ),
]

CYCLES = 20_000_000  # about 10 ms: many times any operation here
WIDTH = 256
SITES = [str(layer) for layer in range(8)]


class InPlace(nn.Module):
    """Changes what the layer before it returned, and frees it."""

    def forward(self, acts: Tensor) -> Tensor:
        result = acts * 2
        acts.fill_(-1)
        return result


def model_of(delay: Callable[[], None] = lambda: None) -> nn.Sequential:
    model = nn.Sequential(
        *(nn.Linear(WIDTH, WIDTH) if layer % 2 == 0 else InPlace() for layer in range(8))
    ).cuda()
    model.register_forward_pre_hook(lambda *_: delay())
    return model


def sleep_on(stream: torch.cuda.Stream) -> None:
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)  # type: ignore[no-untyped-call]


def sleep_on_copies() -> None:
    sleep_on(accelerator._copy_stream(torch.device("cuda", torch.cuda.current_device())))


def sleep_on_compute() -> None:
    sleep_on(torch.cuda.current_stream())


def corrupt(n_bytes: int) -> None:
    """Overwrite what the allocator hands out: memory that somebody may just have freed."""
    for _ in range(4):
        torch.full((n_bytes,), 0xAB, dtype=torch.uint8, device="cuda")


@pytest.fixture
def other_stream() -> Iterator[torch.cuda.Stream]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    yield stream
    torch.cuda.synchronize()


@pytest.mark.parametrize("seed", range(200))
def test_random_programs_equal_the_oracle(seed: int) -> None:
    play(draw_any(seed))


@pytest.mark.parametrize("delay", [sleep_on_copies, sleep_on_compute], ids=["copies", "compute"])
@pytest.mark.parametrize("budget", [None, WIDTH * WIDTH * 4])
def test_values_are_exact_with_a_window_forced_open(
    delay: Callable[[], None], budget: int | None
) -> None:
    """Late copies show memory that is reused too early, late packs copies that do not wait."""
    model = model_of(delay)
    with (
        fastcap.ActivationStore(model, SITES, staging_bytes=budget, pinned_bytes=budget) as store,
        ReferenceStore(model, SITES) as oracle,
    ):
        for seed in range(6):
            torch.manual_seed(seed)
            model(torch.randn(WIDTH, WIDTH, device="cuda"))
            corrupt(WIDTH * WIDTH * 4)
            must_equal(oracle.activations, store.activations)


@pytest.mark.parametrize("pins", [True, False], ids=["pinned", "ordinary"])
def test_results_in_the_caller_s_memory_are_exact(pins: bool) -> None:
    model = model_of(lambda: torch.cuda._sleep(CYCLES // 10))  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(8, 512, WIDTH, generator=generator) for _ in range(5)]  # 4 MiB a record
    dataset = [{"input_ids": row} for batch in batches for row in batch]
    expected = reference.extract(
        model, [{"input_ids": b} for b in batches], SITES, lambda m, b: m(b["input_ids"].cuda())
    )
    found = {site: torch.zeros(40, 512, WIDTH, pin_memory=pins) for site in SITES}
    for _ in range(2):
        for rows in found.values():
            rows.fill_(-1)
        fastcap.extract_representations(model, dataset, SITES, "cuda", 8, out=found)
        must_equal(expected, found)


def test_a_layer_on_another_stream_is_exact(other_stream: torch.cuda.Stream) -> None:
    model = model_of()
    acts = torch.randn(WIDTH, WIDTH, device="cuda")
    other_stream.wait_stream(torch.cuda.current_stream())
    with (
        fastcap.ActivationStore(model, SITES) as store,
        ReferenceStore(model, SITES) as oracle,
        torch.cuda.stream(other_stream),
    ):
        sleep_on_compute()
        model(acts)
    must_equal(oracle.activations, store.activations)


def test_nothing_is_allocated_over_a_thousand_passes() -> None:
    gc.collect()  # or an earlier test's garbage is given back meanwhile
    model = model_of()
    acts = torch.randn(WIDTH, WIDTH, device="cuda")
    gc.collect()  # what earlier tests left would be freed on the way
    with torch.no_grad(), fastcap.ActivationStore(model, SITES) as store:
        reserved = []
        for number in range(1000):
            model(acts.clone())
            assert store.get("7") is not None
            if number in (10, 999):
                torch.cuda.synchronize()
                stats = torch.cuda.memory_stats()
                reserved.append((stats["segment.all.allocated"], stats["num_alloc_retries"]))
    assert reserved[0] == reserved[1]


def test_memory_is_back_after_the_end() -> None:
    gc.collect()
    with torch.no_grad():
        model_of()(torch.randn(WIDTH, WIDTH, device="cuda"))  # cuBLAS keeps a workspace
    gc.collect()
    before = torch.cuda.memory_allocated()
    model = model_of()
    held = torch.cuda.memory_allocated()
    with fastcap.ActivationStore(model, SITES):
        with torch.no_grad():
            model(torch.randn(WIDTH, WIDTH, device="cuda"))
        assert torch.cuda.memory_allocated() > held
    assert torch.cuda.memory_allocated() == held
    del model
    assert torch.cuda.memory_allocated() <= before


def test_an_exception_with_copies_in_flight_keeps_what_came_before() -> None:
    model = model_of(sleep_on_copies)
    batches = [torch.randn(WIDTH, WIDTH, device="cuda"), torch.randn(3, 5, device="cuda")]
    with torch.no_grad(), pytest.raises(RuntimeError) as of_the_model:
        model(batches[1])
    records = fastcap.stream(model, batches, SITES)
    assert len(next(records)) == len(SITES)
    with pytest.raises(RuntimeError) as raised:
        next(records)
    assert type(raised.value) is of_the_model.type
    assert str(raised.value) == str(of_the_model.value)
    assert not model[0]._forward_hooks


END_EARLY = """
import torch, fastcap
from fastcap.devices import accelerator

model = torch.nn.Linear(512, 512).cuda()
store = fastcap.ActivationStore(model, [""])
store.enable()
with torch.cuda.stream(accelerator._copy_stream(torch.device("cuda", 0))):
    torch.cuda._sleep(400_000_000)
model(torch.randn(512, 512, device="cuda"))
records = fastcap.stream(model, [torch.randn(512, 512, device="cuda")] * 4, [""])
next(records)
print("ends here")
"""


@pytest.mark.usefixtures("own_timeout")
def test_the_interpreter_may_end_with_copies_in_flight() -> None:
    done = subprocess.run(
        [sys.executable, "-c", END_EARLY], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends here\n", "")


def sanitized(is_broken: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(is_broken=is_broken)],
        env={**os.environ, "TORCH_CUDA_SANITIZER": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.usefixtures("own_timeout")
def test_the_cuda_sanitizer_finds_nothing(summary: Callable[[str, str], None]) -> None:
    """With a control: an engine whose copy does not wait for its packs."""
    control = sanitized(is_broken=True)
    can_see = "CSAN" in control.stderr
    summary("CUDA sanitizer", "reports the broken engine" if can_see else "BLIND: see the control")
    sound = sanitized(is_broken=False)
    assert "CSAN" not in sound.stderr, sound.stderr
    assert sound.stdout == "done\n", sound.stderr


@pytest.mark.parametrize("mask_on", ["cpu", "cuda"])
@pytest.mark.parametrize(
    "options",
    [{"positions": "last"}, {"positions": "unpadded"}, {"reduce": "mean"}],
    ids=["last", "unpadded", "mean"],
)
def test_padding_is_told_on_the_gpu_and_only_a_mask_that_lives_there_is_waited_for(
    options: dict[str, Any], mask_on: str
) -> None:
    model, n_passes = model_of(), 5
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (n_passes, 4, 16), generator=generator)
    masks[:, :, 3] = 1
    batches = [
        {"acts": torch.randn(4, 16, WIDTH, generator=generator), "attention_mask": mask.to(mask_on)}
        for mask in masks
    ]

    def call(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        output: Tensor = model(batch["acts"].cuda())
        return output

    expected = list(reference.stream(model, batches, SITES, call, make_selection(**options)))
    with fastcap.stream(model, batches, SITES, forward=call, **options) as run:
        for want, records in zip(expected, run, strict=True):
            must_equal(want, dict(records))
        assert run.statistics().mask_reads == (n_passes if mask_on == "cuda" else 0)
