"""Measuring a machine's rates, and a model's forward pass, in a few seconds.

Everything goes through the seam to the device, in the calls that the engine makes and on the
device's own clock, so a simulated machine is measured as a real one is.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcap.archive.files import LocalFiles
from fastcap.devices.base import AnyDevice, HostBuffer, Staging
from fastcap.devices.cpu import SynchronousDevice
from fastcap.errors import HostMemoryError, SaveError
from fastcap.host_memory import available_bytes, empty_bytes
from fastcap.model.forward import BatchCaller, unchanged, uncompiled
from fastcap.planning.machine import Machine
from fastcap.streaming import stream
from fastcap.transfer.budget import MiB

LINK_BYTES = 64 * MiB
N_COPIES = 8
HOST_BYTES = 256 * MiB  # several times any cache
N_PIECES = 16
DISK_BYTES = 256 * MiB
BLOCK_BYTES = 8 * MiB
N_REPEATS = 3
FEW_SITES, MANY_SITES = 8, 72
N_HOOK_PASSES = 20
FORWARD_SECS = 2.0  # no further repeat of a forward pass is begun after so long


class PassSecs(NamedTuple):
    """A pass without hooks, until its work is done and until the call returns; `None`: unknown."""

    forward: float | None
    launch: float | None


def measure_machine(
    device: AnyDevice | None, folder: Path | None = None, rates: Machine | None = None
) -> Machine:
    """Measure what applies to runs on `device`, and the disk below `folder`.

    Args:
        device: Where the model is; `None` for the host's rates alone.
        folder: Where an archive would be; `None` leaves the disk out.
        rates: What is known already, and goes before what is measured.

    Raises:
        SaveError: A file cannot be written there.
    """
    found: dict[str, float] = {}
    on_host = SynchronousDevice(torch.device("cpu")) if device is None else device
    if device is not None and not device.direct:
        found |= _accelerator(device)
    if device is not None:
        found["hook_secs"] = _hook_secs(device)
    found |= _host(on_host, is_direct=device is not None and device.direct)
    if device is None:
        on_host.close()
    known = rates or Machine()
    if folder is not None and known.disk_bytes_per_sec is None:
        found["disk_bytes_per_sec"] = disk_rate(folder)
    return Machine(**found).updated(known)


def measure_forward(call: BatchCaller, model: nn.Module, batch: Any, device: AnyDevice) -> PassSecs:
    """The median of a few passes without hooks, after one that warms up."""
    prepared = call.prepare(batch)
    forward_secs: list[float] = []
    launch_secs: list[float] = []
    with unchanged(model, call.device), uncompiled(), torch.no_grad():
        call(prepared)
        _finish(device)
        while len(forward_secs) < N_REPEATS and sum(forward_secs) < FORWARD_SECS:
            started = device.now()
            call(prepared)
            launch_secs.append(device.now() - started)
            _finish(device)
            forward_secs.append(device.now() - started)
    return PassSecs(statistics.median(forward_secs), statistics.median(launch_secs))


def _finish(device: AnyDevice) -> None:
    """Wait for the compute stream."""
    event = device.event()
    device.record(event, device.current_stream())
    device.synchronize(event)


def _accelerator(device: AnyDevice) -> dict[str, float]:
    staging, source = device.staging(LINK_BYTES), device.staging(LINK_BYTES)
    slot = device.host(LINK_BYTES)
    try:
        copy_secs = _best(lambda: _copies(device, staging, slot), device)
        small_secs = _best(lambda: _packs(device, source.bytes[:256], staging), device) / N_COPIES
        large_secs = _best(lambda: _packs(device, source.bytes, staging), device) / N_COPIES
    finally:
        for buffer in (staging, source, slot):
            device.release(buffer)
    return {
        "link_bytes_per_sec": N_COPIES * LINK_BYTES / copy_secs,
        "device_bytes_per_sec": 2 * LINK_BYTES / max(large_secs - small_secs, 1e-9),
        "pack_secs": small_secs,
    }


def _copies(device: AnyDevice, staging: Staging, slot: HostBuffer) -> None:
    event = device.event()
    for _ in range(N_COPIES):
        device.copy(staging, slot, LINK_BYTES, after=(), then=(event,))
    device.synchronize(event)


def _packs(device: AnyDevice, value: Tensor, staging: Staging) -> None:
    for _ in range(N_COPIES):
        device.pack(value, staging, 0, torch.uint8)
    _finish(device)


def _host(device: AnyDevice, is_direct: bool) -> dict[str, float]:
    """Into fresh memory, and into the same memory again."""
    n_bytes = min(HOST_BYTES, (available_bytes() or HOST_BYTES) // 8)
    n_bytes -= n_bytes % N_PIECES
    source = device.host(n_bytes)
    source.bytes.fill_(1)
    value = source.bytes.to(device.torch_device) if is_direct else source.bytes

    def write(target: Tensor) -> float:
        if is_direct:
            return _secs(lambda: device.place(value, value.dtype, target), device)
        return _secs(lambda: _deliver(device, source, target), device)

    fresh, warm = [], []
    try:
        for _ in range(N_REPEATS):
            target = empty_bytes(n_bytes)
            fresh.append(write(target))
            warm.append(write(target))
            del target  # given back before more is taken
    finally:
        device.release(source)
    return {
        "fresh_bytes_per_sec": n_bytes / statistics.median(fresh),
        "warm_bytes_per_sec": n_bytes / statistics.median(warm),
    }


def _deliver(device: AnyDevice, source: HostBuffer, target: Tensor) -> None:
    """Give every host worker its share, and wait for all."""
    step = target.numel() // N_PIECES
    tickets = [
        device.deliver(
            source, i * step, torch.uint8, target[i * step : (i + 1) * step], None, worker=i
        )
        for i in range(N_PIECES)
    ]
    for ticket in tickets:
        device.join(ticket)
        error = ticket.error()
        if error is not None:
            raise HostMemoryError("A host worker failed while it was measured.") from error


def _hook_secs(device: AnyDevice) -> float:
    """Per site: what further sites add to a pass of modules that do nothing."""
    few, many = _pass_secs(device, FEW_SITES), _pass_secs(device, MANY_SITES)
    return max((many - few) / (MANY_SITES - FEW_SITES), 1e-9)


def _pass_secs(device: AnyDevice, n_sites: int) -> float:
    """The fastest pass with capture, less the fastest without."""
    model = nn.Sequential(*[nn.Identity() for _ in range(n_sites)])
    value = torch.zeros(1, 1, device=device.torch_device)
    sites = [str(index) for index in range(n_sites)]
    with torch.no_grad():
        plain = [_secs(lambda: model(value), device) for _ in range(N_HOOK_PASSES)]
    with stream(model, [value] * N_HOOK_PASSES, sites, prefetch=0) as records:
        hooked = [_secs(lambda: next(records), device) for _ in range(N_HOOK_PASSES)]
    return min(hooked) - min(plain)


def disk_rate(folder: Path) -> float:
    """Bytes per second of one file, written as the archive writes and synced.

    Raises:
        SaveError: It cannot be written.
    """
    files, clock = LocalFiles(), SynchronousDevice(torch.device("cpu"))
    place = nearest_folder(folder)
    path = place / f".fastcap-plan-{os.getpid()}"
    n_bytes = min(DISK_BYTES, (files.free_bytes(place) or DISK_BYTES) // 4)
    n_bytes = max(n_bytes - n_bytes % BLOCK_BYTES, BLOCK_BYTES)
    block = memoryview(os.urandom(BLOCK_BYTES))  # zeros may never reach a disk
    try:
        with _scratch(files, path) as file:
            started = clock.now()
            for offset in range(0, n_bytes, BLOCK_BYTES):
                n_written = 0
                while n_written < BLOCK_BYTES:
                    n_written += file.write_at(offset + n_written, block[n_written:])
                file.behind(offset + BLOCK_BYTES)
            file.sync()
            return n_bytes / (clock.now() - started)
    except OSError as error:
        raise SaveError(
            error.errno,
            f"The disk at {str(place)!r} cannot be measured: {error.strerror}. Give a folder that "
            "can be written, or leave the measurement out.",
        ) from error


def nearest_folder(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), folder)


@contextlib.contextmanager
def _scratch(files: LocalFiles, path: Path) -> Iterator[Any]:
    file = files.create(path)
    try:
        yield file
    finally:
        file.close()
        files.remove(path)


def _best(task: Callable[[], object], device: AnyDevice) -> float:
    return min(_secs(task, device) for _ in range(N_REPEATS))


def _secs(task: Callable[[], object], device: AnyDevice) -> float:
    """Seconds on the device's clock, at least a nanosecond."""
    started = device.now()
    task()
    return max(device.now() - started, 1e-9)
