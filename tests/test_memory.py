"""How much memory there is, how it is divided, and how host memory is used again."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastcap.errors import ArgumentError, ArgumentTypeError, HostMemoryError
from fastcap.formatting import format_bytes
from fastcap.host_memory import HostBuffers, available_bytes, empty_bytes
from fastcap.transfer.budget import (
    ALIGNMENT_BYTES,
    LARGEST_CHUNK_BYTES,
    SMALLEST_CHUNK_BYTES,
    Budget,
    Limits,
    MiB,
    halved,
    make_limits,
    plan_budget,
)

GiB = 1 << 30


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_available_memory_is_the_kernels_word_without_groups(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo="MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert available_bytes(root) == 4000 * 1024


def test_a_version_2_group_limits_what_is_available(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__meminfo="MemAvailable: 4000 kB\n",
        proc__self__cgroup="0::/job\n",
        sys__fs__cgroup__job__memory_DOT_max="1000000\n",
        sys__fs__cgroup__job__memory_DOT_current="700000\n",
        sys__fs__cgroup__job__memory_DOT_stat="anon 5\ninactive_file 200000\n",
    )
    assert available_bytes(root) == 500_000  # dropped page cache counts as free


def test_an_ancestors_limit_counts_and_max_means_none(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__meminfo="MemAvailable: 4000 kB\n",
        proc__self__cgroup="0::/slice/job\n",
        sys__fs__cgroup__slice__job__memory_DOT_max="max\n",
        sys__fs__cgroup__slice__job__memory_DOT_current="1\n",
        sys__fs__cgroup__slice__memory_DOT_max="2000\n",
        sys__fs__cgroup__slice__memory_DOT_current="1500\n",
    )
    assert available_bytes(root) == 500


def test_a_containers_limit_is_found_where_the_hosts_path_is_not(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="0::/host/path/that/is/not/here\n",
        sys__fs__cgroup__memory_DOT_max="3000\n",
        sys__fs__cgroup__memory_DOT_current="1000\n",
    )
    assert available_bytes(root) == 2000


def test_a_version_1_group_limits_what_is_available(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/x\n7:memory:/job\n",
        sys__fs__cgroup__memory__job__memory_DOT_limit_in_bytes="900\n",
        sys__fs__cgroup__memory__job__memory_DOT_usage_in_bytes="1000\n",
        sys__fs__cgroup__memory__job__memory_DOT_stat="total_inactive_file 50\n",
    )
    assert available_bytes(root) == 0


def test_a_system_that_does_not_say_is_unknown(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None


def test_this_machine_has_some_memory_available() -> None:
    found = available_bytes()
    assert found is None or found > 0


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2_150_000_000, "2.15 GB"),
        (999_600, "1 MB"),
        (44e14, "4.4 PB"),
        (44e21, "44,000 EB"),
    ],
)
def test_bytes_for_people(n_bytes: float, text: str) -> None:
    assert format_bytes(n_bytes) == text


def test_memory_that_the_system_refuses_says_what_to_do() -> None:
    with pytest.raises(HostMemoryError, match=r"Cannot allocate .* of host memory\. Select fewer"):
        empty_bytes(1 << 60)


# Budgets

SIZES = st.integers(ALIGNMENT_BYTES, 4 * GiB)


@given(
    device=st.none() | SIZES,
    host=st.none() | SIZES,
    free=st.none() | st.integers(0, 200 * GiB),
    available=st.none() | st.integers(0, 200 * GiB),
    pass_bytes=st.integers(0, 8 * GiB),
    share=st.integers(1, 64),
)
def test_a_plan_keeps_to_every_budget(
    device: int | None,
    host: int | None,
    free: int | None,
    available: int | None,
    pass_bytes: int,
    share: int,
) -> None:
    limits = make_limits(device, host)
    budget = plan_budget(limits, free, available, pass_bytes, pass_bytes // share)
    assert budget.n_chunks >= 1
    assert budget.n_slots >= 1
    assert ALIGNMENT_BYTES <= budget.chunk_bytes <= LARGEST_CHUNK_BYTES
    assert budget.chunk_bytes % ALIGNMENT_BYTES == 0
    if device is not None:
        assert budget.chunk_bytes * budget.n_chunks <= device
    if host is not None:
        assert budget.chunk_bytes * budget.n_slots <= host


def test_the_first_plan_is_two_small_chunks() -> None:
    assert plan_budget(Limits(), 100 * GiB, 100 * GiB) == Budget(SMALLEST_CHUNK_BYTES, 2, 4)


def test_a_large_pass_gets_large_chunks_and_two_passes_of_slots() -> None:
    budget = plan_budget(Limits(pinned_bytes=8 * GiB), 100 * GiB, 100 * GiB, GiB, 64 * MiB)
    assert budget == Budget(64 * MiB, 4, 2 * GiB // (64 * MiB) + 6)


def test_staging_holds_two_of_the_largest_record() -> None:
    budget = plan_budget(Limits(), 100 * GiB, 100 * GiB, 4 * GiB, GiB)
    assert budget == Budget(64 * MiB, 32, budget.n_slots)


@pytest.mark.parametrize("n_bytes", [5 * MiB, 12 * MiB, 16 * MiB, 64 * MiB])
def test_slots_are_no_larger_than_the_records_to_be_lent_out_of_them(n_bytes: int) -> None:
    limits = Limits(lends=True)
    budget = plan_budget(limits, 100 * GiB, 100 * GiB, 12 * n_bytes, n_bytes)
    assert n_bytes <= budget.chunk_bytes <= 2 * n_bytes
    assert budget.n_slots >= 3 * 12 + budget.n_chunks  # one record in each


def test_memory_is_halved_down_to_one_chunk_of_a_megabyte() -> None:
    sizes = []
    budget: Budget | None = Budget(8 * MiB, 4, 6)
    while budget is not None:
        sizes.append(budget.chunk_bytes * budget.n_chunks // MiB)
        budget = halved(budget)
    assert sizes == [32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize("value", [0, -1, 255])
def test_a_budget_too_small_for_one_record_is_refused(value: int) -> None:
    with pytest.raises(ArgumentError, match="staging_bytes must be at least 256"):
        make_limits(value, None)


@pytest.mark.parametrize("value", [True, 1e9, "1 GB"])
def test_a_budget_that_is_no_int_is_refused(value: object) -> None:
    with pytest.raises(ArgumentTypeError, match="pinned_bytes must be an int"):
        make_limits(None, value)  # type: ignore[arg-type]


# Owned memory that is used again

LARGE = HostBuffers.SMALLEST_BYTES


def test_memory_nobody_holds_is_used_again() -> None:
    buffers = HostBuffers(limit_bytes=1 << 30)
    first = buffers.tensor((LARGE,), torch.uint8)
    address = first.data_ptr()
    del first
    gc.collect()
    assert buffers.tensor((LARGE // 4,), torch.float32).data_ptr() == address


def test_memory_somebody_holds_is_never_used_again() -> None:
    buffers = HostBuffers(limit_bytes=1 << 30)
    first = buffers.tensor((LARGE,), torch.uint8).fill_(7)
    view, array = first[10:], first.numpy()
    del first
    for _ in range(3):
        buffers.tensor((LARGE,), torch.uint8).fill_(0)
    assert view.eq(7).all()
    del view
    assert (array == 7).all()
    buffers.tensor((LARGE,), torch.uint8).fill_(0)
    assert (array == 7).all()


def test_owned_tensors_have_exact_storages_and_no_inference_mode() -> None:
    buffers = HostBuffers(limit_bytes=1 << 30)
    with torch.inference_mode():
        for shape in [(3, 5), (LARGE, 3), (0, 4), ()]:
            tensor = buffers.tensor(shape, torch.bfloat16)
            assert tensor.shape == shape
            assert not tensor.is_inference()
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
            del tensor
    smaller = buffers.tensor((LARGE * 3 - 100,), torch.bfloat16)  # memory of a larger one
    assert smaller.untyped_storage().nbytes() == smaller.nbytes


def test_idle_memory_is_bounded_and_can_be_given_back() -> None:
    buffers = HostBuffers(limit_bytes=3 * LARGE)
    held = [buffers.tensor((LARGE,), torch.uint8) for _ in range(10)]
    del held
    gc.collect()
    buffers.tensor((LARGE,), torch.uint8)
    assert buffers.idle_bytes() <= 3 * LARGE
    buffers.trim()
    assert buffers.idle_bytes() == 0
