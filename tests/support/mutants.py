"""Engines that are broken on purpose: one edge, wait or reference each left out.

What the tests find in the sound engine means nothing unless they find these. A mutant names the
rule it breaks (docs/exactness.md) and, where it is one, the published defect of another offloader
that it repeats. Most are looked for with random programs; what those cannot show has a scenario of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support import scenarios
from tests.support.mutation import Change, Deletion, seam_calls

POOL, STAGED = "fastcap.transfer.pool", "fastcap.transfer.staged"
PINNED_OUT = "fastcap.transfer.pinned_out"
SIMULATED = "fastcap.devices.simulated.device:SimulatedDevice"
IN_ORDER = (
    "copies of one device run in the order they were issued, so a copy into a slot that nobody "
    "wants follows the one before it. The check keeps R6 true without that order."
)


@dataclass(frozen=True)
class Mutant:
    """One way to be broken.

    Attributes:
        rule: The rule that no longer holds.
        drops: What is left out, in words.
        changes: How.
        scenario: What shows it; `None` for random programs.
        defect: The published defect it repeats, by its number in docs/exactness.md.
        survives: Why nothing shows it, where that is so.
    """

    rule: str
    drops: str
    changes: tuple[Change | Deletion, ...]
    scenario: Callable[[], None] | None = None
    defect: str = ""
    survives: str = ""

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.applied())
            yield


def _mutant(
    rule: str,
    drops: str,
    *edits: tuple[str, str, str],
    scenario: Callable[[], None] | None = None,
    defect: str = "",
    survives: str = "",
) -> Mutant:
    return Mutant(rule, drops, tuple(Change(*e) for e in edits), scenario, defect, survives)


MUTANTS = [
    _mutant(
        "R1",
        "the compute stream is asked for once and remembered",
        (
            f"{STAGED}:StagedTransfer._stage",
            "compute_stream = self._device.current_stream()",
            "compute_stream = self.__dict__.setdefault('first', self._device.current_stream())",
        ),
    ),
    _mutant(
        "R1",
        "the device packs on the stream it was opened on",
        (f"{SIMULATED}.pack", "stream = self.current_stream()", "stream = self.compute"),
        defect="M1",
    ),
    _mutant(
        "R1",
        "the device packs on the copy stream",
        (f"{SIMULATED}.pack", "stream = self.current_stream()", "stream = self.copy_stream"),
        defect="M2",
    ),
    _mutant(
        "R2",
        "a flush marks one of the streams that packed",
        (
            f"{POOL}:Chunk.record_packed",
            "in self.streams.items():",
            "in list(self.streams.items())[:1]:",
        ),
        defect="M10",
    ),
    _mutant(
        "R2",
        "a flush marks the stream of whoever asks for it",
        (
            f"{POOL}:Chunk.record_packed",
            "self._device.record(event, compute_stream)",
            "self._device.record(event, self._device.current_stream())",
        ),
    ),
    _mutant(
        "R3",
        "the copy does not wait for the packs",
        (f"{STAGED}:StagedTransfer._copy_to_slot", "after=chunk.record_packed(),", "after=(),"),
    ),
    _mutant(
        "R3",
        "the mark is made before the packs instead of after them",
        (
            f"{POOL}:Chunk.open_to",
            "self.streams[compute_stream] = event",
            "self.streams[compute_stream] = event; self._device.record(event, compute_stream)",
        ),
        (
            f"{POOL}:Chunk.record_packed",
            "self._device.record(event, compute_stream)",
            "pass",
        ),
    ),
    _mutant(
        "R3",
        "the mark made when a chunk was full stays where it is when more is packed",
        (f"{POOL}:Chunk.open_to", "self._is_recorded = False", "pass"),
    ),
    _mutant(
        "R2",
        "the mark of a full chunk is made when a slot is free",
        (f"{STAGED}:StagedTransfer._pack", "chunk.record_packed()", "pass"),
        scenario=scenarios.a_full_chunk_is_copied_before_the_next_layer_is_done,
    ),
    _mutant(
        "R11",
        "the hook waits for a host worker where it could pin a slot",
        (
            f"{STAGED}:StagedTransfer._make_room",
            "(would_spill or not victim.pieces)",
            "would_spill",
        ),
        scenario=scenarios.a_consumer_that_pauses_does_not_hold_up_the_model,
    ),
    _mutant(
        "R6",
        "a slot is pinned while copies still land in others",
        (
            f"{STAGED}:StagedTransfer._make_room",
            "None if victim.pieces else self._memory.slots.next_to_land()",
            "None",
        ),
        scenario=scenarios.a_consumer_that_keeps_up_needs_few_slots,
    ),
    _mutant(
        "R6",
        "slots are pinned without regard to the budget",
        (
            "fastcap.transfer.memory:TransferMemory.add_slot",
            "len(self.slots) < self._most_slots()",
            "True",
        ),
    ),
    _mutant(
        "R3",
        "staging is rewritten without waiting for its copy",
        (
            f"{STAGED}:StagedTransfer._copy_to_slot",
            "then=(slot.landed, chunk.copied),",
            "then=(slot.landed,),",
        ),
    ),
    _mutant(
        "R3",
        "only the first stream to pack waits for the copy before",
        (
            f"{POOL}:Chunk.open_to",
            "self._device.wait_event(compute_stream, self.copied)",
            "self.streams or self._device.wait_event(compute_stream, self.copied)",
        ),
    ),
    _mutant(
        "R3",
        "the wait is put on the copy stream, where it means nothing",
        (
            f"{POOL}:Chunk.open_to",
            "self._device.wait_event(compute_stream, self.copied)",
            "self._device.wait_event(self._device.copy_stream, self.copied)",
        ),
        defect="M3",
    ),
    _mutant(
        "R3",
        "fresh staging is used on a stream that knows nothing of its allocation",
        (f"{POOL}:Chunk.__init__", "device.record(self.copied, device.current_stream())", "pass"),
        defect="M6",
    ),
    _mutant(
        "R3",
        "staging is given back before its last copy has read it",
        (
            f"{POOL}:Chunk.release",
            "self._device.release(self.staging, [*self.record_packed(), self.copied])",
            "self._device.release(self.staging)",
        ),
        defect="M4",
    ),
    _mutant(
        "R3",
        "a chunk that nobody wants is used again with no edge between its streams",
        (
            f"{POOL}:Chunk.abandon",
            "self._device.record(self.copied, next(iter(self.streams)))",
            "pass",
        ),
        scenario=scenarios.an_unwanted_chunk_changes_streams,
    ),
    _mutant(
        "R4",
        "slots are ordinary memory, which the device did not allocate",
        (f"{POOL}:Slot.__init__", "device.host(n_bytes)", "HostBuffer(empty_bytes(n_bytes))"),
    ),
    _mutant(
        "R3",
        "a copy straight to its rows does not wait for the packs",
        (
            f"{PINNED_OUT}:copy_to_rows",
            "after = chunk.record_packed()",
            "after = chunk.record_packed()[:0]",
        ),
    ),
    _mutant(
        "R3",
        "staging is rewritten behind the first of the pieces that go straight",
        (f"{PINNED_OUT}:copy_to_rows", "if piece is pieces[-1] else", "if piece is pieces[0] else"),
        scenario=scenarios.several_values_of_a_chunk_go_straight,
    ),
    _mutant(
        "R4",
        "values go straight to rows that copies do not reach",
        (
            "fastcap.consumers.memory:MemoryResult.write_into",
            "reaches(view)",
            "True",
        ),
    ),
    _mutant(
        "R4",
        "a value that is still to be converted goes straight",
        (
            f"{PINNED_OUT}:choose_way",
            "is_large and capture.dtype == capture.wire_dtype",
            "is_large",
        ),
    ),
    _mutant(
        "R4",
        "the copy goes to memory that is not a slot",
        (
            f"{STAGED}:StagedTransfer._copy_to_slot",
            "        slot.buffer,\n",
            "        HostBuffer(slot.buffer.bytes.clone()),\n",
        ),
    ),
    _mutant(
        "R5",
        "the host reads a slot without its event",
        (f"{STAGED}:StagedTransfer._read_piece", "self._device.synchronize(home.landed)", "pass"),
        defect="M5",
    ),
    _mutant(
        "R5",
        "of a value in pieces, only the first is waited for",
        (
            f"{STAGED}:StagedTransfer._read_piece",
            "self._device.synchronize(home.landed)",
            "piece.start or self._device.synchronize(home.landed)",
        ),
    ),
    _mutant(
        "R5",
        "a host worker reads a slot without its event",
        (
            f"{STAGED}:StagedTransfer._hand_over",
            "(home.buffer, home.landed)",
            "(home.buffer, None)",
        ),
    ),
    _mutant(
        "R5",
        "a slot is lent before its copy has landed",
        (f"{STAGED}:StagedTransfer._lend", "self._device.synchronize(slot.landed)", "pass"),
    ),
    _mutant(
        "R6",
        "a slot is used again while it is lent",
        (f"{POOL}:SlotPool.is_reusable", "and not slot.n_leases", ""),
        defect="M11",
    ),
    _mutant(
        "R6",
        "a slot is used again while a worker is delivering from it",
        (
            f"{POOL}:SlotPool.is_reusable",
            "and all(ticket.done() for ticket in slot.tickets)",
            "",
        ),
    ),
    _mutant(
        "R6",
        "a slot is used again while a thread reads it",
        (f"{POOL}:SlotPool.is_reusable", "and not slot.n_readers", ""),
        scenario=scenarios.a_reader_keeps_its_slot,
    ),
    _mutant(
        "R6",
        "a slot is used again before its copy has landed",
        (f"{POOL}:SlotPool.is_reusable", "and self._device.query(slot.landed)", ""),
        survives=IN_ORDER,
    ),
    _mutant(
        "R6",
        "a lease ends with the first tensor over it instead of its storage",
        (
            f"{POOL}:SlotPool.lend",
            (
                "weakref.finalize(array, _end_lease, weakref.ref(self), lease).atexit = False\n"
                "    return bytes_tensor(array)"
            ),
            (
                "lent = bytes_tensor(array)\n"
                "    weakref.finalize(lent, _end_lease, weakref.ref(self), lease)\n"
                "    return lent"
            ),
        ),
    ),
    _mutant(
        "R6",
        "owned memory is used again when the first tensor over it goes, and not its storage",
        (
            "fastcap.host_memory:HostBuffers.tensor",
            (
                "weakref.finalize(array, _give_back, weakref.ref(self), memory).atexit = False\n"
                "        return bytes_tensor(array).view(dtype).view(shape)"
            ),
            (
                "owned = bytes_tensor(array)\n"
                "        weakref.finalize(owned, _give_back, weakref.ref(self), memory)\n"
                "        return owned.view(dtype).view(shape)"
            ),
        ),
        scenario=scenarios.owned_memory_outlives_its_first_tensor,
    ),
    _mutant(
        "R6",
        "the last slot is lent too",
        (f"{POOL}:SlotPool.may_lend", "and not self.is_last(slot)", ""),
    ),
    _mutant(
        "R6",
        "memory for slots is taken anew for every copy",
        (
            f"{POOL}:SlotPool.take",
            "self.collect_returned()",
            "self._slots.appendleft(Slot(self._device, self._slots[0].n_bytes))",
        ),
        scenario=scenarios.passes_allocate_nothing,
        defect="M7",
    ),
    _mutant(
        "R7",
        "a value that is still wanted dies with its slot",
        (f"{STAGED}:StagedTransfer._empty", "self._spill(piece, slot)", "piece.unlink()"),
    ),
    _mutant(
        "R7",
        "a value is saved from a slot before it has landed there",
        (f"{STAGED}:StagedTransfer._empty", "self._device.synchronize(slot.landed)", "pass"),
    ),
    _mutant(
        "R7",
        "only pieces that are still wanted keep their slot from being used again: none do",
        (f"{POOL}:SlotPool.is_reusable", "not slot.pieces\n        and", ""),
    ),
    _mutant(
        "R8",
        "asking for a value does not flush, a post-hook would have to",
        (f"{STAGED}:StagedTransfer.result", "self._put_on_its_way(capture)", "pass"),
    ),
    _mutant(
        "R8",
        "disabling does not deliver what is under way",
        ("fastcap.activations:ActivationStore.disable", "transfer.result(capture)", "pass"),
    ),
    _mutant(
        "R9",
        "missing memory is raised into the model",
        (
            f"{STAGED}:StagedTransfer.capture",
            "capture.error = without_frames(error)",
            "raise",
        ),
        scenario=scenarios.missing_memory_is_raised_to_who_asks,
    ),
    _mutant(
        "R10",
        "results are made in the inference mode of whoever asks",
        ("fastcap.host_memory:HostBuffers.tensor", "with normal_mode():", "if True:"),
    ),
    _mutant(
        "R10",
        "a user's dispatch mode sees what fastcap does",
        ("fastcap.engine:Engine._take", "with modes_off():", "if True:"),
        scenario=scenarios.a_dispatch_mode_sees_the_model_only,
    ),
    _mutant(
        "R11",
        "reserve, pack and link are not one step",
        (f"{STAGED}:StagedTransfer._stage", "with self._lock:", "if True:"),
        (f"{STAGED}:StagedTransfer._stage_piece", "with self._lock:", "if True:"),
        scenario=scenarios.a_capture_is_one_step,
    ),
    _mutant(
        "R11",
        "an event is waited for under the lock",
        (
            f"{STAGED}:StagedTransfer._read_piece",
            "self._device.synchronize(home.landed)",
            "with self._lock: self._device.synchronize(home.landed)",
        ),
        scenario=scenarios.nothing_waits_under_the_lock,
    ),
    _mutant(
        "R12",
        "hooks keep the store alive",
        (
            "fastcap.model.hooks:_make_hook",
            "weakref.ref(receiver)",
            "(lambda kept=receiver: kept)",
        ),
        scenario=scenarios.what_is_dropped_is_gone,
    ),
    _mutant(
        "R12",
        "closing leaves the hooks on",
        ("fastcap.engine:Engine.close", "self.detach()", "pass"),
        scenario=scenarios.an_ended_stream_leaves_no_hook,
    ),
    _mutant(
        "R12",
        "staging is not given back at the end",
        (f"{POOL}:StagingRing.release", "chunk.release()", "pass"),
        defect="M8",
    ),
    _mutant(
        "R13",
        "packing calls record_stream",
        (
            f"{STAGED}:StagedTransfer._pack",
            "piece.home = chunk",
            "piece.home = chunk; hasattr(value, 'none') and value.record_stream(compute_stream)",
        ),
        scenario=scenarios.no_function_names_what_is_forbidden,
    ),
    _mutant(
        "R3",
        "all chunks share one event",
        (
            f"{POOL}:StagingRing.extend",
            "self._chunks.insert(1, Chunk(device, self.chunk_bytes))",
            (
                "self._chunks.insert(1, Chunk(device, self.chunk_bytes)); "
                "[setattr(each, 'copied', self._chunks[0].copied) for each in self._chunks]"
            ),
        ),
        scenario=scenarios.copies_hide_behind_the_model,
    ),
    _mutant(
        "R3",
        "a chunk waits for the newest copy instead of its own",
        (
            f"{STAGED}:StagedTransfer._flush_open",
            "ring.advance()",
            "ring.advance(); ring.open.copied = chunk.copied",
        ),
        scenario=scenarios.copies_hide_behind_the_model,
    ),
    _mutant(
        "R12",
        "a run ends while a copy to the caller's rows is under way",
        (
            f"{STAGED}:StagedTransfer.close",
            "wait_for_copies(self._device, ring.open, slots.all()[0])",
            "pass",
        ),
    ),
    _mutant(
        "R11",
        "the hook waits for its copy",
        (
            f"{STAGED}:StagedTransfer._flush_open",
            "ring.advance()",
            "ring.advance(); self._device.synchronize(chunk.copied)",
        ),
        scenario=scenarios.copies_hide_behind_the_model,
    ),
]

NEEDS_A_SITUATION: dict[str, Callable[[], None]] = {
    "transfer.pool:Chunk.__init__ current_stream": scenarios.staging_may_be_allocated_on_any_stream,
    "transfer.pool:SlotPool.next_to_land query": scenarios.a_consumer_that_keeps_up_needs_few_slots,
    "transfer.pool:SlotPool.collect_returned take_back": scenarios.what_was_lent_is_taken_back,
    "transfer.pool:Chunk.abandon record": scenarios.an_unwanted_chunk_changes_streams,
    "transfer.pool:Chunk.open_to lasts": scenarios.a_stream_ends_before_its_values_are_read,
    "transfer.pool:Chunk.close_to record": scenarios.a_stream_ends_before_its_values_are_read,
    "transfer.staged:StagedTransfer.refuse_graphs is_capturing": (
        scenarios.a_graph_capture_is_refused
    ),
    "transfer.memory:TransferMemory._plan free_bytes": scenarios.staging_leaves_room_for_the_model,
}
SURVIVING = {
    "transfer.pool:SlotPool.is_reusable query": IN_ORDER,
    "transfer.pinned_out:Landing.done query": (
        "values that go straight are waited for all the same. Asking first only lets go of "
        "captures early."
    ),
    "transfer.pinned_out:Landing.wait synchronize": (
        "who waits for such a value is about to close its transfer, which waits for the last of "
        "them, unless a site is called on two devices in one pass (tests/test_out.py). Without the "
        "call a value would be called delivered that is not."
    ),
    "transfer.staged:StagedTransfer._read_small query": (
        "a small value is read behind its own event all the same. Asking first only keeps the "
        "thread that asks from waiting."
    ),
}


def deletions() -> list[Mutant]:
    """Every call into the device, left out in turn."""
    return [
        Mutant(
            "seam",
            f"{call.name} (call {call.number})",
            (call,),
            NEEDS_A_SITUATION.get(call.name),
            survives=SURVIVING.get(call.name, ""),
        )
        for call in seam_calls(POOL, STAGED, PINNED_OUT, "fastcap.transfer.memory")
    ]
