"""What a real CUDA runtime would not tell a test: on the stand-in, whose calls are counted and
whose devices can be two (`tests/standin_cuda/README.md`). One command: `make gpu-rehearsal`.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices import open_device
from fastcap.errors import DeviceError
from fastcap.reference import ReferenceStore
from tests.standin_cuda import controls
from tests.support.runs import must_equal

pytestmark = pytest.mark.gpu
on_standin = pytest.mark.skipif(
    not controls.is_here(), reason="needs the stand-in runtime's counters: make gpu-rehearsal"
)
two_devices = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two CUDA devices"
)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, none is here")

WIDTH = 64
INVALID_RESOURCE_HANDLE = 400


@pytest.fixture(autouse=True)
def first_device_is_current() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.set_device(0)


class Split(nn.Module):
    """A model over two devices: there, to the second, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH).to("cuda:0")
        self.second = nn.Linear(WIDTH, WIDTH).to("cuda:1")
        self.third = nn.Linear(WIDTH, WIDTH).to("cuda:0")

    def forward(self, acts: Tensor) -> Tensor:
        acts = self.second(self.first(acts.to("cuda:0")).to("cuda:1"))
        output: Tensor = self.third(acts.to("cuda:0"))
        return output


SITES = ["first", "second", "third"]


# Two devices


@two_devices
@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_a_model_over_two_devices_is_exact(current: int, seed: int) -> None:
    torch.cuda.set_device(current)
    if controls.is_here():
        controls.reseed(seed)
    model = Split()
    with (
        fastcap.ActivationStore(model, SITES, staging_bytes=16384, pinned_bytes=65536) as store,
        ReferenceStore(model, SITES) as oracle,
        torch.no_grad(),
    ):
        for _ in range(4):
            model(torch.randn(WIDTH, WIDTH))
            found = store.activations
            must_equal(oracle.activations, found)
    assert torch.cuda.current_device() == current


@two_devices
@pytest.mark.parametrize("current", [0, 1])
def test_a_run_over_two_devices_is_the_same_in_the_caller_s_memory(current: int) -> None:
    torch.cuda.set_device(current)
    model = Split()
    dataset = [{"input_ids": torch.randn(WIDTH)} for _ in range(40)]
    out = {site: torch.zeros(40, WIDTH, pin_memory=True) for site in SITES}
    expected = fastcap.extract_representations(model, dataset, SITES, "cuda:0", 8)
    found = fastcap.extract_representations(model, dataset, SITES, "cuda:0", 8, out=out)
    must_equal(dict(expected), dict(found))
    assert torch.cuda.current_device() == current


@on_standin
@two_devices
def test_a_model_on_the_second_device_makes_no_call_on_the_first() -> None:
    """A context that nobody wants takes hundreds of megabytes of a GPU that may be another's."""
    torch.cuda.set_device(1)
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))).to("cuda:1")
    batches = [torch.randn(512, 256) for _ in range(6)]
    torch.cuda.synchronize(1)
    before = controls.uses(0)
    with torch.no_grad():
        for records in fastcap.stream(model, batches, ["0", "1", "2", "3"], device="cuda:1"):
            assert len(records) == 4
    assert controls.uses(0) == before


@two_devices
def test_a_capture_is_noticed_on_the_value_s_device() -> None:
    devices = [open_device(torch.device("cuda", index)) for index in range(2)]
    graph, count = torch.cuda.CUDAGraph(), torch.zeros(1, device="cuda:1")
    with torch.cuda.device(1), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        graph.capture_begin()
        count.add_(1)
        with torch.cuda.device(0):
            noticed = [device.is_capturing() for device in devices]
        graph.capture_end()
    assert noticed == [False, True]


# Streams, events, errors


ONE_COPY_STREAM = """
import dataclasses, torch, fastcap
from fastcap.devices import accelerator

made = []
able = accelerator.ABILITIES["cuda"]
accelerator.ABILITIES["cuda"] = dataclasses.replace(
    able, new_stream=lambda device: made.append(device) or able.new_stream(device)
)
model = torch.nn.Linear(8, 8).cuda()
out = {"": torch.zeros(4, 8, pin_memory=True)}
dataset = [{"input_ids": torch.randn(8)} for _ in range(4)]
fastcap.extract_representations(model, dataset, [""], "cuda", 2, out=out)
print(len(made))
"""


@cuda
@pytest.mark.usefixtures("own_timeout")
def test_cuda_and_cuda_0_share_a_copy_stream() -> None:
    command = [sys.executable, "-c", ONE_COPY_STREAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "1\n", done.stderr


@cuda
def test_a_graph_capture_after_one_pass_is_refused_by_name() -> None:
    """The second pass is when memory is planned anew, which no capture allows."""
    model = nn.Linear(WIDTH, WIDTH).cuda()
    acts = torch.randn(4, WIDTH, device="cuda")
    with torch.no_grad(), fastcap.ActivationStore(model, [""]) as store:
        model(acts)
        with (
            pytest.raises(DeviceError, match="CUDA graph is being captured"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            model(acts)
        assert store.get("") is not None


@on_standin
def test_an_error_of_the_device_is_not_called_a_lack_of_memory() -> None:
    """A kernel's illegal address is reported by whichever call comes next."""
    device = open_device(torch.device("cuda"))
    with controls.broken(), pytest.raises(RuntimeError) as raised:
        device.host(1 << 24)
    assert "illegal memory access" in str(raised.value)
    assert "Cannot pin" not in str(raised.value)


@on_standin
def test_passes_make_no_events_once_memory_is_planned() -> None:
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4))).cuda()
    acts = torch.randn(WIDTH, WIDTH, device="cuda")
    made = []
    with torch.no_grad(), fastcap.ActivationStore(model, ["0", "1", "3"]) as store:
        for number in range(40):
            model(acts)
            assert len(store.activations) == 3
            if number in (9, 39):
                made.append(controls.count("cudaEventCreate"))
    # torch's pinned allocator makes one of its own for a block that it has not lent before.
    assert made[1] - made[0] <= 2


# The stand-in itself


@on_standin
def test_a_copy_is_late_until_somebody_waits() -> None:
    controls.reseed(0, "lazy")
    source = torch.arange(8, device="cuda")
    torch.cuda.synchronize()
    target = torch.full((8,), -1, pin_memory=True)
    target.copy_(source, non_blocking=True)
    early = target.tolist()
    torch.cuda.synchronize()
    controls.reseed(0)
    assert early == [-1] * 8
    assert target.tolist() == list(range(8))


@on_standin
def test_a_destroyed_stream_finishes_its_work_and_takes_no_more() -> None:
    controls.reseed(0, "lazy")
    runtime = controls.library()
    handle = ctypes.c_void_p()
    runtime.cudaStreamCreate(ctypes.byref(handle))
    source, target = torch.ones(8).pin_memory(), torch.zeros(8, device="cuda")
    torch.cuda.synchronize()
    copy = (ctypes.c_void_p(target.data_ptr()), ctypes.c_void_p(source.data_ptr()))
    assert runtime.cudaMemcpyAsync(*copy, ctypes.c_size_t(32), 1, handle) == 0
    assert runtime.cudaStreamDestroy(handle) == 0
    assert runtime.cudaStreamSynchronize(handle) == INVALID_RESOURCE_HANDLE
    torch.cuda.synchronize()
    controls.reseed(0)
    assert target.tolist() == [1.0] * 8


@on_standin
@two_devices
def test_an_event_of_one_device_is_not_recorded_on_another() -> None:
    runtime = controls.library()
    event, stream = ctypes.c_void_p(), ctypes.c_void_p()
    runtime.cudaSetDevice(0)
    runtime.cudaEventCreate(ctypes.byref(event))
    runtime.cudaSetDevice(1)
    runtime.cudaStreamCreate(ctypes.byref(stream))
    assert runtime.cudaEventRecord(event, stream) == INVALID_RESOURCE_HANDLE
    assert runtime.cudaEventDestroy(event) == 0
    assert runtime.cudaEventQuery(event) == INVALID_RESOURCE_HANDLE
    runtime.cudaSetDevice(0)
