"""An accelerator simulated on CPU memory: the same seam, any schedule, and judges.

`SimulatedDevice` is the adversary: streams run when a seeded `Schedule` says so, an order judge
looks for pairs of accesses that nothing orders, and poison shows in values that were read too early
or kept too long. `TimedDevice` has a virtual clock instead: it says how long a run takes on a
machine with given bandwidths.

What neither models: more than one copy engine, the sizes and fragmentation of a real allocator,
errors of the link, kernels that write outside their tensors, and how fast this machine is.
"""

from fastcap.devices.simulated.device import SimulatedDevice as SimulatedDevice
from fastcap.devices.simulated.runner import StuckError as StuckError
from fastcap.devices.simulated.schedule import EXTREMES as EXTREMES
from fastcap.devices.simulated.schedule import Schedule as Schedule
from fastcap.devices.simulated.streams import SimulatedStream as SimulatedStream
from fastcap.devices.simulated.timed import SimulatedCosts as SimulatedCosts
from fastcap.devices.simulated.timed import TimedDevice as TimedDevice

__all__ = [
    "EXTREMES",
    "Schedule",
    "SimulatedCosts",
    "SimulatedDevice",
    "SimulatedStream",
    "StuckError",
    "TimedDevice",
]
