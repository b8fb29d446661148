"""The synchronous device: everything has happened by the time a call returns.

For CPU models, where there is no link to hide, and for accelerators without streams that torch can
wait on (MPS, R17). The hook copies once, straight to where the value is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastcap.devices.base import Buffer, HostBuffer, Staging
from fastcap.devices.threaded import ThreadedDevice
from fastcap.host_memory import empty_bytes


class SynchronousDevice(ThreadedDevice[None, None]):
    """One stream that is always idle, and events that are always done."""

    direct = True

    def current_stream(self) -> None:
        return None

    def event(self) -> None:
        self.counters.events += 1

    def record(self, event: None, stream: None) -> None:
        pass

    def wait_event(self, stream: None, event: None) -> None:
        self.counters.stream_waits += 1

    def query(self, event: None) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def free_bytes(self) -> int | None:
        return None

    def staging(self, n_bytes: int) -> Staging:
        self.counters.device_allocations += 1
        self.counters.staging_bytes += n_bytes
        with torch.inference_mode(False):
            memory = torch.empty(n_bytes, dtype=torch.uint8, device=self.torch_device)
        return Staging(memory)

    def host(self, n_bytes: int) -> HostBuffer:
        self.counters.host_allocations += 1
        self.counters.pinned_bytes += n_bytes
        return HostBuffer(empty_bytes(n_bytes))

    def release(self, buffer: Buffer, after: Iterable[None] = ()) -> None:
        if isinstance(buffer, Staging):
            self.counters.staging_bytes -= buffer.n_bytes
        else:
            self.counters.pinned_bytes -= buffer.n_bytes

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        staging.view(dtype, offset, value.shape).copy_(value)

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[None],
        then: Iterable[None],
        offset: int = 0,
    ) -> None:
        target.bytes[:n_bytes].copy_(staging.bytes[offset : offset + n_bytes])
        self.counters.copies += n_bytes > 0
        self.counters.copied_bytes += n_bytes
