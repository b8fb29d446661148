"""How much memory capturing may use: budgets in bytes, turned into chunks and slots."""

from __future__ import annotations

from dataclasses import dataclass

from fastcap.spec import as_count

MiB = 1 << 20
ALIGNMENT_BYTES = 256  # where a record starts in a chunk: what device allocators align to
SMALLEST_CHUNK_BYTES = 8 * MiB  # past the knee of the link: a copy this large runs at full speed
LARGEST_CHUNK_BYTES = 64 * MiB
MOST_SMALL_CHUNKS = 16  # beyond this, more chunks hid nothing more (docs/design/cost-model.md)
DEFAULT_DEVICE_BYTES = 256 * MiB
DEFAULT_HOST_BYTES = 2048 * MiB
UNKNOWN_HOST_BYTES = 4096 * MiB  # assumed to be available where the system does not say


@dataclass(frozen=True, slots=True)
class Budget:
    """The sizes of one lane.

    Attributes:
        chunk_bytes: Bytes of one staging chunk, and of one slot.
        n_chunks: Chunks in the staging ring.
        n_slots: Slots in the pool.
    """

    chunk_bytes: int
    n_chunks: int
    n_slots: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows; `None` leaves it to fastcap.

    Attributes:
        device_bytes: Staging on the accelerator, in bytes.
        host_bytes: Slots in (pinned) host memory, in bytes.
        n_passes: Passes that slots should hold at once: one that lands while one is delivered, and
            another where slots are lent to a loop that keeps one while it asks for the next.
    """

    device_bytes: int | None = None
    host_bytes: int | None = None
    n_passes: int = 2


def make_limits(
    device_bytes: int | None, host_bytes: int | None, zero_copy: bool = False
) -> Limits:
    """Check a user's budgets.

    Raises:
        ArgumentTypeError: Not an int.
        ArgumentError: Less than one aligned record (256 bytes).
    """
    return Limits(
        None if device_bytes is None else as_count("device_bytes", device_bytes, ALIGNMENT_BYTES),
        None if host_bytes is None else as_count("host_bytes", host_bytes, ALIGNMENT_BYTES),
        n_passes=3 if zero_copy else 2,
    )


def plan_budget(
    limits: Limits,
    free_device_bytes: int | None,
    available_host_bytes: int | None,
    pass_bytes: int = 0,
    largest_bytes: int = 0,
) -> Budget:
    """Divide the budgets for passes of `pass_bytes` whose largest record has `largest_bytes`.

    With both 0, before anything is known, the smallest ring that works: two chunks of 8 MiB.
    Staging of twice the largest burst hides the copy behind compute entirely; less costs a stall
    (docs/design/cost-model.md).
    """
    device_bytes = limits.device_bytes or _default_device_bytes(free_device_bytes, largest_bytes)
    host_bytes = limits.host_bytes or _default_host_bytes(available_host_bytes)
    staging_bytes = min(device_bytes, max(2 * pass_bytes, 2 * SMALLEST_CHUNK_BYTES))
    chunk_bytes = min(max(staging_bytes // 4, SMALLEST_CHUNK_BYTES), LARGEST_CHUNK_BYTES)
    half_bytes = max(device_bytes // 2, ALIGNMENT_BYTES)  # a ring of one chunk overlaps nothing
    chunk_bytes = _round_down(min(chunk_bytes, half_bytes, host_bytes))
    n_chunks = staging_bytes // chunk_bytes
    if chunk_bytes < SMALLEST_CHUNK_BYTES:
        n_chunks = min(n_chunks, MOST_SMALL_CHUNKS)
    wanted_slots = -(-limits.n_passes * pass_bytes // chunk_bytes) + n_chunks + 2
    return Budget(chunk_bytes, n_chunks, max(1, min(wanted_slots, host_bytes // chunk_bytes)))


def settled_budget(
    limits: Limits,
    free_device_bytes: int | None,
    available_host_bytes: int | None,
    pass_bytes: int,
    largest_bytes: int,
) -> Budget:
    """What a lane has from its second pass on: the first budget, or the one planned for the pass.

    A ring of smaller chunks than the first one's would be no gain.
    """
    known = limits, free_device_bytes, available_host_bytes
    first, better = plan_budget(*known), plan_budget(*known, pass_bytes, largest_bytes)
    return first if better.chunk_bytes < first.chunk_bytes else better


def _default_device_bytes(free_bytes: int | None, largest_bytes: int) -> int:
    default = DEFAULT_DEVICE_BYTES
    if free_bytes is not None:
        default = min(default, free_bytes // 20)
    return max(default, 2 * largest_bytes, ALIGNMENT_BYTES)


def _default_host_bytes(available_bytes: int | None) -> int:
    available = UNKNOWN_HOST_BYTES if available_bytes is None else available_bytes
    return max(min(DEFAULT_HOST_BYTES, available // 4), ALIGNMENT_BYTES)


def _round_down(n_bytes: int) -> int:
    """To a power of two from 8 MiB up (what torch's pinned allocator rounds up to), else to 256."""
    if n_bytes >= SMALLEST_CHUNK_BYTES:
        return 1 << (n_bytes.bit_length() - 1)
    return n_bytes - n_bytes % ALIGNMENT_BYTES


def halved(budget: Budget) -> Budget | None:
    """Half the memory, chunks first; `None` when nothing is left to halve."""
    if budget.n_chunks > 1:
        return Budget(budget.chunk_bytes, budget.n_chunks // 2, budget.n_slots)
    if budget.chunk_bytes > MiB:
        return Budget(budget.chunk_bytes // 2, 1, budget.n_slots)
    return None
