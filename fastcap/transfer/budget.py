"""How much memory capturing may use: budgets in bytes, turned into chunks and slots."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fastcap.formatting import format_bytes
from fastcap.spec import as_count

MiB = 1 << 20
ALIGNMENT_BYTES = 256  # where a record starts in a chunk: what device allocators align to
SMALLEST_CHUNK_BYTES = 8 * MiB  # past the knee of the link: a copy this large runs at full speed
LARGEST_CHUNK_BYTES = 64 * MiB
MOST_SMALL_CHUNKS = 16  # beyond this, more chunks hid nothing more (docs/design/cost-model.md)
DEFAULT_STAGING_BYTES = 256 * MiB
UNKNOWN_HOST_BYTES = 4096 * MiB  # assumed to be available where the system does not say


@dataclass(frozen=True, slots=True)
class Budget:
    """The sizes of one transfer.

    Attributes:
        chunk_bytes: Bytes of one staging chunk, and of one slot.
        n_chunks: Chunks in the staging ring.
        n_slots: The most slots there may be. The pool begins with `n_first_slots` and pins one more
            where the host would otherwise spill a value or wait for a slow consumer.
        staging_reason: What set the size of the ring.
        slots_reason: What set the number of slots.
    """

    chunk_bytes: int
    n_chunks: int
    n_slots: int
    staging_reason: str = field(default="", compare=False)
    slots_reason: str = field(default="", compare=False)

    @property
    def n_first_slots(self) -> int:
        """One for each chunk, one that is being delivered, and one more."""
        return min(self.n_slots, self.n_chunks + 2)

    @property
    def staging_bytes(self) -> int:
        return self.chunk_bytes * self.n_chunks

    @property
    def slot_bytes(self) -> int:
        """The most that slots may take."""
        return self.chunk_bytes * self.n_slots

    def of_staging(self) -> str:
        """The ring for people: `staging: 4 x 67.1 MB (256 MiB, the default)`."""
        chunk = format_bytes(self.chunk_bytes)
        return f"staging: {self.n_chunks} x {chunk} ({self.staging_reason})"

    def __str__(self) -> str:
        slots = f"{self.n_first_slots} to {self.n_slots} x {format_bytes(self.chunk_bytes)}"
        return f"{self.of_staging()}; slots: {slots} ({self.slots_reason})"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows; `None` leaves it to fastcap.

    Attributes:
        staging_bytes: Staging on the accelerator, in bytes.
        pinned_bytes: Slots in (pinned) host memory, in bytes.
        lends: Whether records are lent out of slots, which they have to fill for that.
    """

    staging_bytes: int | None = None
    pinned_bytes: int | None = None
    lends: bool = False

    @property
    def n_passes(self) -> int:
        """Passes that slots may hold at once: one that lands while one is delivered, and another
        where slots are lent to a loop that keeps one while it asks for the next.
        """
        return 3 if self.lends else 2


def make_limits(
    staging_bytes: int | None, pinned_bytes: int | None, zero_copy: bool = False
) -> Limits:
    """Check a user's budgets.

    Raises:
        ArgumentTypeError: Not an int.
        ArgumentError: Less than one aligned record (256 bytes).
    """
    return Limits(
        None
        if staging_bytes is None
        else as_count("staging_bytes", staging_bytes, ALIGNMENT_BYTES),
        None if pinned_bytes is None else as_count("pinned_bytes", pinned_bytes, ALIGNMENT_BYTES),
        lends=zero_copy,
    )


def plan_budget(
    limits: Limits,
    free_device_bytes: int | None,
    available_host_bytes: int | None,
    pass_bytes: int = 0,
    largest_bytes: int = 0,
) -> Budget:
    """Divide the budgets for passes of `pass_bytes` whose largest record has `largest_bytes`.

    Staging of twice the largest burst hides the copy behind compute entirely; less costs a stall
    (docs/design/cost-model.md). Slots hold the passes that are in host memory at once.
    """
    most_staging_bytes, staging_reason = _staging_limit(limits, free_device_bytes, largest_bytes)
    most_pinned_bytes, pinned_reason = _pinned_limit(limits, available_host_bytes)
    wanted_bytes = max(2 * pass_bytes, 2 * SMALLEST_CHUNK_BYTES)
    staging_bytes = min(most_staging_bytes, wanted_bytes)
    chunk_bytes = min(max(staging_bytes // 4, SMALLEST_CHUNK_BYTES), LARGEST_CHUNK_BYTES)
    if limits.lends and 2 * largest_bytes >= SMALLEST_CHUNK_BYTES:
        # A record that leaves half of its slot empty is copied out of it, and not lent.
        chunk_bytes = min(chunk_bytes, max(_round_up(largest_bytes), SMALLEST_CHUNK_BYTES))
    half_bytes = max(
        most_staging_bytes // 2, ALIGNMENT_BYTES
    )  # a ring of one chunk overlaps nothing
    chunk_bytes = _round_down(min(chunk_bytes, half_bytes, most_pinned_bytes))
    n_chunks = staging_bytes // chunk_bytes
    if chunk_bytes < SMALLEST_CHUNK_BYTES:
        n_chunks = min(n_chunks, MOST_SMALL_CHUNKS)
    # What records of this size leave empty at the end of a slot is not used.
    filled_bytes = chunk_bytes - (chunk_bytes % largest_bytes if largest_bytes else 0)
    wanted_slots = -(-limits.n_passes * pass_bytes // (filled_bytes or chunk_bytes)) + n_chunks + 2
    most_slots = max(1, most_pinned_bytes // chunk_bytes)
    if wanted_bytes <= most_staging_bytes:
        is_smallest = 2 * pass_bytes < wanted_bytes
        staging_reason = "the least" if is_smallest else f"2 passes of {format_bytes(pass_bytes)}"
    if wanted_slots <= most_slots:
        pinned_reason = f"{limits.n_passes} passes of {format_bytes(pass_bytes)} + copies in flight"
    n_slots = min(wanted_slots, most_slots)
    return Budget(chunk_bytes, n_chunks, n_slots, staging_reason, pinned_reason)


def settled_budget(first: Budget, better: Budget) -> Budget:
    """What a transfer has once a pass is known: the budget for that, unless it has more already.

    Larger chunks need all memory anew. More chunks and slots of the same size are added to what
    there is, and nothing is taken away: memory that was planned for is not worth a pause.
    """
    if better.chunk_bytes > first.chunk_bytes:
        return better
    staging = better if better.staging_bytes > first.staging_bytes else first
    slots = better if better.slot_bytes > first.slot_bytes else first
    return Budget(
        first.chunk_bytes,
        staging.staging_bytes // first.chunk_bytes,
        slots.slot_bytes // first.chunk_bytes,
        staging.staging_reason,
        slots.slots_reason,
    )


def _staging_limit(limits: Limits, free_bytes: int | None, largest_bytes: int) -> tuple[int, str]:
    """The most that staging may take, and why."""
    if limits.staging_bytes is not None:
        return limits.staging_bytes, "staging_bytes="
    limit_bytes, reason = DEFAULT_STAGING_BYTES, "256 MiB, the default"
    if free_bytes is not None and free_bytes // 20 < limit_bytes:
        limit_bytes, reason = free_bytes // 20, "5 % of free device memory"
    if 2 * largest_bytes > limit_bytes:
        limit_bytes, reason = 2 * largest_bytes, "2 of the largest record"
    return max(limit_bytes, ALIGNMENT_BYTES), reason


def _pinned_limit(limits: Limits, available_bytes: int | None) -> tuple[int, str]:
    """The most that slots may take, and why."""
    if limits.pinned_bytes is not None:
        return limits.pinned_bytes, "pinned_bytes="
    if available_bytes is None:
        return UNKNOWN_HOST_BYTES // 4, "available host memory is unknown"
    return max(available_bytes // 4, ALIGNMENT_BYTES), "1/4 of available host memory"


def _round_down(n_bytes: int) -> int:
    """To a power of two from 8 MiB up (what torch's pinned allocator rounds up to), else to 256."""
    if n_bytes >= SMALLEST_CHUNK_BYTES:
        return 1 << (n_bytes.bit_length() - 1)
    return n_bytes - n_bytes % ALIGNMENT_BYTES


def _round_up(n_bytes: int) -> int:
    """To a power of two."""
    return 1 << (n_bytes - 1).bit_length()


def halved(budget: Budget) -> Budget | None:
    """Half the memory, chunks first; `None` when nothing is left to halve."""
    if budget.n_chunks > 1:
        return replace(budget, n_chunks=budget.n_chunks // 2)
    if budget.chunk_bytes > MiB:
        return replace(budget, chunk_bytes=budget.chunk_bytes // 2, n_chunks=1)
    return None
