"""The judge of time: runs on a virtual clock take what the cost model says, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fastcap.devices.simulated import SimulatedCosts
from fastcap.transfer.budget import Budget
from tests.support.virtual import (
    BURSTY,
    MS,
    Load,
    MiB,
    baseline_secs,
    bounds,
    makespan,
    predicted_secs,
    synchronous_secs,
)

GB = 1e9
ROOMY = Budget(chunk_bytes=64 * MiB, n_chunks=4, n_slots=110)
COMPUTE_BOUND = Load(budget=ROOMY)
LINK_BOUND = Load(budget=ROOMY, forward_secs=20 * MS, lends=True)
CONSUMER_BOUND = Load(budget=ROOMY, costs=SimulatedCosts(host_bytes_per_sec=1.5 * GB))
LAUNCH_BOUND = Load(budget=ROOMY, launch_secs=350 * MS)

FREE = SimulatedCosts(
    link_bytes_per_sec=1 * GB,
    copy_latency_secs=0.0,
    memory_bytes_per_sec=1e6 * GB,
    launch_secs=0.0,
    hook_secs=0.0,
    host_bytes_per_sec=1e6 * GB,
)
"""A machine on which only the model and a link of 1 GB/s take time."""


def by_hand(**changes: object) -> Load:
    """Three passes of one site of 100 MB, which crosses the link in 0.1 s."""
    small = Load(
        n_passes=3, n_layers=1, site_bytes=100_000_000, launch_secs=0.0, lends=True, costs=FREE
    )
    return replace(small, **changes)  # type: ignore[arg-type]


def test_three_passes_worked_out_by_hand() -> None:
    """Compute takes 0.3 s a pass and a copy 0.1 s.

    compute  0.0 ---- 0.3 ---- 0.6 ---- 0.9
    copy              0.3-0.4  0.6-0.7  0.9-1.0
    """
    load = by_hand(forward_secs=0.3, budget=Budget(100_000_000, 2, 8))
    assert makespan(load) == pytest.approx(1.0, rel=1e-3)


def test_three_passes_that_the_link_holds_up_worked_out_by_hand() -> None:
    """Compute takes 0.05 s a pass and a copy 0.1 s.

    compute  0-0.05-0.1  0.15 (the third pack waits until the first copy has read its chunk)
    copy       0.05 - 0.15 - 0.25 - 0.35
    """
    load = by_hand(forward_secs=0.05, budget=Budget(100_000_000, 2, 8))
    assert makespan(load) == pytest.approx(0.35, rel=1e-3)


@pytest.mark.parametrize(
    ("load", "bound"),
    [
        (COMPUTE_BOUND, "compute"),
        (LINK_BOUND, "link"),
        (CONSUMER_BOUND, "consumer"),
        (LAUNCH_BOUND, "host"),
        (BURSTY, "compute"),
    ],
    ids=["compute", "link", "consumer", "host", "bursty"],
)
def test_a_run_takes_what_its_bound_allows(load: Load, bound: str) -> None:
    assert bounds(load).name == bound
    assert makespan(load) == pytest.approx(predicted_secs(load), rel=0.03)


def test_capture_hides_behind_a_model_that_computes_longer() -> None:
    assert makespan(COMPUTE_BOUND) <= 1.02 * baseline_secs(COMPUTE_BOUND)


def test_the_link_is_kept_busy_when_it_is_the_bound() -> None:
    floor_secs = LINK_BOUND.n_passes * bounds(LINK_BOUND).link
    assert floor_secs >= 0.95 * makespan(LINK_BOUND)


@pytest.mark.parametrize("load", [COMPUTE_BOUND, LINK_BOUND], ids=["compute-bound", "link-bound"])
def test_with_one_chunk_only_packs_wait_for_copies(load: Load) -> None:
    """A full chunk is copied at once: the next layer computes meanwhile, and its pack waits."""
    alone = replace(load, budget=Budget(64 * MiB, 1, 110))
    term = bounds(alone)
    pack_secs = term.compute - alone.forward_secs
    turns_secs = alone.n_passes * (max(alone.forward_secs, term.link) + pack_secs)
    assert makespan(alone) == pytest.approx(turns_secs, rel=0.03)


def test_with_one_chunk_a_burst_and_its_copies_take_turns() -> None:
    """Nothing computes between the sites of a burst: each pack waits for the copy before it."""
    alone = replace(BURSTY, budget=Budget(64 * MiB, 1, 110))
    term = bounds(alone)
    n_passes, n_layers = alone.n_passes, alone.n_layers
    # The last copy of a pass is under way while the next pass computes.
    hidden_secs = (n_passes - 1) * min(alone.forward_secs, term.link / n_layers)
    pack_secs = 2 * alone.pass_bytes / alone.costs.memory_bytes_per_sec
    turns_secs = n_passes * (alone.forward_secs + pack_secs + term.link) - hidden_secs
    assert makespan(alone) == pytest.approx(turns_secs, rel=0.03)


@pytest.mark.parametrize("site_bytes", [2 * MiB, 24 * MiB], ids=["small", "a third of a slot"])
def test_a_lending_stream_of_records_too_small_to_lend_takes_no_longer(site_bytes: int) -> None:
    """The workers copy them: in a model bound by its launches the calling thread has no time to."""
    load = replace(LAUNCH_BOUND, site_bytes=site_bytes, budget=Budget(64 * MiB, 4, 64))
    assert makespan(replace(load, lends=True)) <= 1.01 * makespan(replace(load, lends=False))


@pytest.mark.parametrize(
    "chunks", [2, 3, 4], ids=["twice the largest burst", "three times", "four times"]
)
def test_staging_of_twice_the_largest_burst_hides_the_shorter_one(chunks: int) -> None:
    load = replace(COMPUTE_BOUND, budget=Budget(64 * MiB, chunks, 110))
    assert makespan(load) == pytest.approx(predicted_secs(load), rel=0.03)


@pytest.mark.parametrize("n_chunks", [2, 8, 16, 33])
def test_between_them_a_burst_stalls_for_what_does_not_fit(n_chunks: int) -> None:
    load = replace(BURSTY, budget=Budget(64 * MiB, n_chunks, 110))
    assert makespan(load) == pytest.approx(predicted_secs(load), rel=0.05)


def test_a_synchronous_hook_on_the_same_machine_takes_the_sum() -> None:
    """What `.detach().cpu()` costs, and so the factor that overlap wins."""
    load = COMPUTE_BOUND
    copies_secs = load.pass_bytes / load.costs.pageable_bytes_per_sec
    expected = load.n_passes * (load.forward_secs + copies_secs)
    assert synchronous_secs(load) == pytest.approx(expected, rel=0.01)
    assert synchronous_secs(load) / makespan(load) > 2.3


GRID = {
    "all 32 layers, prefill 8 x 1024, in memory": Load(budget=ROOMY),
    "all 32 layers, prefill 8 x 1024, lent slots": Load(budget=ROOMY, lends=True),
    "one layer, prefill 8 x 1024, in memory": Load(n_layers=1, launch_secs=2 * MS, budget=ROOMY),
    "all 32 layers, last position, in memory": Load(site_bytes=64 << 10, budget=ROOMY),
    "all 32 layers, decode of 8, in memory": Load(
        n_passes=64, site_bytes=64 << 10, forward_secs=4.5 * MS, launch_secs=4 * MS, budget=ROOMY
    ),
    "12 layers, width 768, in memory": Load(
        n_layers=12, site_bytes=12 * MiB, forward_secs=20 * MS, launch_secs=1 * MS, budget=ROOMY
    ),
}
"""A 32-layer, width-4096 bf16 model on one H200, with the constants of `SimulatedCosts`."""


def test_the_virtual_twin_of_an_h200(summary: Callable[[str, str], None]) -> None:
    rows = [f"{'':<46}{'baseline':>10}{'fastcap':>9}{'.cpu()':>9}  {'bound':<9}{'model':>6}"]
    for name, load in GRID.items():
        plain, found, cpu = baseline_secs(load), makespan(load), synchronous_secs(load)
        rows.append(
            f"{name:<46}{plain / load.n_passes / MS:>7.2f} ms{found / plain:>8.2f}x"
            f"{cpu / plain:>8.2f}x  {bounds(load).name:<9}{found / predicted_secs(load):>6.2f}"
        )
        assert found <= 1.05 * predicted_secs(load), name
        assert found < cpu, name
    summary(
        "virtual twin of an H200 (arithmetic on stated constants, not a measurement)",
        "\n".join(rows),
    )
