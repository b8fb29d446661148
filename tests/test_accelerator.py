"""The accelerator device's own promises, over streams that log what is asked of them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastcap
from fastcap import devices, reference
from fastcap.devices import accelerator
from fastcap.devices.accelerator import AcceleratorDevice
from fastcap.errors import DeviceError, DeviceMemoryError, HostMemoryError
from tests.support.devices import LoggedStream, LoggedStreams, logged_accelerator
from tests.support.errors import message_of
from tests.support.scripted import LEAVES, ScriptedModel, Value

CPU = torch.device("cpu")


@pytest.fixture
def streams() -> LoggedStreams:
    return LoggedStreams()


@pytest.fixture
def device(streams: LoggedStreams) -> Iterator[AcceleratorDevice]:
    with logged_accelerator(streams) as device:
        yield device
        device.close()


def test_a_copy_waits_before_it_runs_and_marks_after_it(
    device: AcceleratorDevice, streams: LoggedStreams
) -> None:
    staging, slot = device.staging(64), device.host(64)
    first, second, landed, copied = (device.event() for _ in range(4))
    device.copy(staging, slot, 64, after=[first, second], then=[landed, copied])
    assert streams.log == [
        "copy stream 1 waits for event 1",
        "copy stream 1 waits for event 2",
        "enter copy stream 1",
        "leave copy stream 1",
        "event 3 on copy stream 1",
        "event 4 on copy stream 1",
    ]


def test_the_current_stream_is_asked_for_every_time(
    device: AcceleratorDevice, streams: LoggedStreams
) -> None:
    other = LoggedStream("other", streams.log)
    assert device.current_stream() is streams.default
    streams.current = other
    assert device.current_stream() is other


def test_one_copy_stream_serves_all_transfers_of_a_device(
    device: AcceleratorDevice, streams: LoggedStreams
) -> None:
    another = AcceleratorDevice(CPU)
    for each in (device, another):
        each.copy(each.staging(64), each.host(64), 64, after=[], then=[])
    assert [line for line in streams.log if "enter" in line] == ["enter copy stream 1"] * 2
    another.close()


def test_staging_is_given_back_in_the_order_of_the_stream_it_came_from(
    device: AcceleratorDevice, streams: LoggedStreams
) -> None:
    staging, copied = device.staging(64), device.event()
    streams.current = LoggedStream("other", streams.log)
    device.release(staging, [copied])
    assert streams.log == ["default waits for event 1"]


def test_a_wait_for_what_is_done_is_not_counted(device: AcceleratorDevice) -> None:
    device.synchronize(device.event())
    assert device.counters.waits == 0


def test_memory_that_does_not_fit_on_the_device_says_what_to_do(
    device: AcceleratorDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(DeviceMemoryError, match=r"Cannot allocate 1\.05 MB of staging on cpu"):
        device.staging(1 << 20)


def test_memory_that_cannot_be_pinned_says_what_to_do(streams: LoggedStreams) -> None:
    def refuse(n_bytes: int) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    with logged_accelerator(streams):
        accelerator.ABILITIES["cpu"] = replace(streams.abilities(), new_pinned=refuse)
        device = AcceleratorDevice(CPU)
        with pytest.raises(HostMemoryError, match=r"Cannot pin 1\.05 MB.*pinned_bytes=.*ulimit -l"):
            device.host(1 << 20)


def test_the_engine_never_enters_the_copy_stream_around_anything_but_a_copy(
    streams: LoggedStreams,
) -> None:
    values = [Value((4, 3), torch.float32, "contiguous", "tensor", seed) for seed in range(4)]
    model = torch.nn.ModuleList([ScriptedModel()])[0]
    assert isinstance(model, ScriptedModel)
    with logged_accelerator(streams) as device, devices.substitute(lambda _: device):
        store = fastcap.ActivationStore(model, LEAVES, staging_bytes=512, pinned_bytes=4096)
        oracle = reference.ReferenceStore(model, LEAVES)
        with store, oracle:
            for leaf, value in zip(model.leaves, values, strict=True):
                leaf(value)
            assert not reference.differences(oracle.activations, store.activations)
    entered = [i for i, line in enumerate(streams.log) if line.startswith("enter")]
    assert entered
    assert all(streams.log[i + 1].startswith("leave") for i in entered)


def test_a_cuda_graph_capture_is_refused(streams: LoggedStreams) -> None:
    model = torch.nn.Sequential(torch.nn.ReLU())
    with logged_accelerator(streams):
        accelerator.ABILITIES["cpu"] = replace(streams.abilities(), is_capturing=lambda: True)
        device = AcceleratorDevice(CPU)
        with (
            devices.substitute(lambda _: device),
            fastcap.ActivationStore(model, ["0"]),
            pytest.raises(DeviceError, match="CUDA graph is being captured"),
        ):
            model(torch.ones(2))


def test_cuda_and_every_other_accelerator_have_a_way_to_do_each_thing() -> None:
    for abilities in (accelerator.GENERIC, accelerator.ABILITIES["cuda"]):
        assert all(callable(getattr(abilities, name)) for name in abilities.__slots__)


def test_a_generic_stream_leaves_both_devices_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Setting a stream of another device changes that device's stream and the current device."""
    current_device: list[int] = [0]
    streams: dict[int, Any] = {0: "stream of 0", 1: "stream of 1"}

    class Copies:
        device = 1

    def set_stream(stream: Any) -> None:
        place = 1 if stream is copies or stream == "stream of 1" else 0
        streams[place], current_device[0] = stream, place

    def current_stream(device: int | None = None) -> Any:
        return streams[current_device[0] if device is None else device]

    copies = Copies()
    monkeypatch.setattr(torch.accelerator, "set_stream", set_stream)
    monkeypatch.setattr(torch.accelerator, "current_stream", current_stream)
    with accelerator.GENERIC.use_stream(copies):
        assert (streams[1], current_device) == (copies, [1])
    assert (streams, current_device) == ({0: "stream of 0", 1: "stream of 1"}, [0])


def device_at(index: int | None) -> AcceleratorDevice:
    return AcceleratorDevice(torch.device("cpu") if index is None else torch.device("cpu", index))


def test_a_device_without_an_index_is_the_current_one(streams: LoggedStreams) -> None:
    """And has its copy stream: a second one would be in no order with the first."""
    with logged_accelerator(streams):
        streams.current_index = 1
        named, current, other = device_at(1), device_at(None), device_at(0)
        assert named.torch_device == current.torch_device == torch.device("cpu", 1)
        assert named._copy_stream is current._copy_stream
        assert named._copy_stream is not other._copy_stream


def test_workers_begin_on_the_device_of_their_events(streams: LoggedStreams) -> None:
    """A thread's first call would otherwise make a context on device 0, half a gigabyte of it."""
    with logged_accelerator(streams):
        device = device_at(1)
        ticket = device.deliver(device.host(64), 0, torch.uint8, torch.empty(64).byte(), None, 0)
        device.join(ticket)
        assert streams.log == ["thread begins on device 1"]
        device.close()


@pytest.mark.parametrize("verb", ["query", "_block_until", "is_capturing"])
@pytest.mark.parametrize("current_index", [0, 1])
def test_a_device_is_asked_while_it_is_the_current_one(
    streams: LoggedStreams, verb: str, current_index: int
) -> None:
    """A query makes a context on the current device, and a stream's capture is another's affair."""
    with logged_accelerator(streams):
        device = device_at(1)
        arguments = () if verb == "is_capturing" else (device.event(),)
        streams.current_index = current_index
        getattr(device, verb)(*arguments)
        moves = [line for line in streams.log if "device" in line]
        assert moves == ([] if current_index == 1 else ["to device 1", "back to device 0"])
        assert streams.current_index == current_index


def test_staging_belongs_to_a_stream_that_nobody_can_end(
    device: AcceleratorDevice, streams: LoggedStreams
) -> None:
    theirs = streams.current = LoggedStream("theirs", streams.log)
    staging, copied = device.staging(64), device.event()
    assert streams.log == [
        "enter default",
        "leave default",
        "event 1 on default",
        "theirs waits for event 1",
    ]
    streams.current = streams.default  # theirs is gone
    device.release(staging, [copied])
    assert streams.log[4:] == ["default waits for event 2"]
    assert theirs is not streams.default


class Broken(LoggedStream):
    def query(self) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")


def test_an_error_of_earlier_work_is_not_called_a_lack_of_memory(streams: LoggedStreams) -> None:
    def refuse(n_bytes: int) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with logged_accelerator(streams):
        accelerator.ABILITIES["cpu"] = replace(
            streams.abilities(),
            new_pinned=refuse,
            new_stream=lambda device: Broken("copy stream", streams.log),
        )
        message = message_of(DeviceError, lambda: device_at(2).host(1 << 20))
    assert message == (
        "cpu:2 answers every call with an error of earlier work: CUDA error: an illegal memory "
        "access was encountered. Nothing can be captured on it any more. Run again in a new "
        "process with CUDA_LAUNCH_BLOCKING=1, which raises the error where it happens."
    )


LAYOUTS: dict[str, Any] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 2),
    "channels last": lambda x: x.unsqueeze(0).to(memory_format=torch.channels_last),
    "strided": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(5, -1, -1),
    "0-d": lambda x: x[0, 0, 0],
    "empty": lambda x: x[:0],
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative bit": lambda x: torch.complex(x, x).conj().imag,
    "bool": lambda x: x > 10,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_upload_is_what_to_gives_and_later_writes_do_not_reach_it(
    device: AcceleratorDevice, layout: str
) -> None:
    base = torch.arange(60.0).view(3, 4, 5)
    value = LAYOUTS[layout](base)
    expected = value.to("cpu", copy=True)
    uploaded = device.upload(value)
    if value.numel():
        value = value.zero_() if layout != "expanded" else base.zero_()
    assert uploaded.dtype is expected.dtype
    assert uploaded.stride() == expected.stride()
    assert uploaded.equal(expected)


@pytest.mark.parametrize("reason", ["too large", "cannot be pinned"])
def test_what_cannot_go_through_pinned_memory_is_uploaded_all_the_same(
    streams: LoggedStreams, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refuse(n_bytes: int) -> torch.Tensor:
        assert reason == "cannot be pinned"
        raise RuntimeError("CUDA error: out of memory")

    if reason == "too large":
        monkeypatch.setattr(accelerator, "MOST_UPLOADED_BYTES", 7)
    with logged_accelerator(streams):
        accelerator.ABILITIES["cpu"] = replace(streams.abilities(), new_pinned=refuse)
        assert AcceleratorDevice(CPU).upload(torch.ones(2)).equal(torch.ones(2))


class Wrapper:
    def __init__(self, **parts: int) -> None:
        self.parts = parts


def test_the_stream_is_asked_for_every_time_and_its_wrapper_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handles, asked = [0], []

    def current(index: int) -> int:
        asked.append(index)
        return handles[0]

    def ids(index: int) -> tuple[int, int, int]:
        return handles[0], index, 1

    monkeypatch.setattr(accelerator, "_KnownStream", Wrapper)
    monkeypatch.setattr(accelerator, "_known_streams", {})
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", current, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentStream", ids, raising=False)
    ask = accelerator.ABILITIES["cuda"].current_stream
    of_device: dict[int, Any] = {index: ask(torch.device("cuda", index)) for index in (0, 1)}
    assert of_device[1].parts == {"stream_id": 0, "device_index": 1, "device_type": 1}
    assert ask(torch.device("cuda", 1)) is of_device[1] is not of_device[0]
    handles[0] = 7
    other = ask(torch.device("cuda", 1))
    assert other is not of_device[1]
    assert asked == [0, 1, 1, 1]
    for handle in range(2 * accelerator.MOST_KNOWN_STREAMS):
        handles[0] = handle
        ask(torch.device("cuda", 0))
    assert len(accelerator._known_streams) <= accelerator.MOST_KNOWN_STREAMS


def test_a_stream_that_somebody_made_does_not_last() -> None:
    lasts = accelerator.ABILITIES["cuda"].lasts
    theirs, torchs, default = (
        SimpleNamespace(stream_id=stream_id, cuda_stream=handle)
        for stream_id, handle in ((0x5500, 0x5500), (3, 0x5600), (0, 0))
    )
    assert [lasts(stream) for stream in (theirs, torchs, default)] == [False, True, True]


def torch_threads() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(sys.platform == "win32", reason="the team's size cannot be set there")
def test_workers_copy_alone_and_nobody_else_does(device: AcceleratorDevice) -> None:
    """Neither the thread that starts them nor threads to come."""
    before, of_new_threads = torch.get_num_threads(), torch_threads()
    found: list[int] = []
    device._workers.submit(0, lambda: found.append(torch.get_num_threads())).result()
    assert found == [1]
    assert torch.get_num_threads() == before
    assert torch_threads() == of_new_threads
