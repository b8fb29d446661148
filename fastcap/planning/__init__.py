"""Planning: what a run will take, before it starts.

examples   the batch that one pass of the run has
observe    what a pass captures, without keeping it
machine    rates, given or measured (`measure`)
costs      the cost model: bytes by rates
place      where the run will be
assemble   bytes, memory and time, put together
sizes      bytes site by site, and where they lie
plans      the result, with its `table`, its `advice` and its `comparison`
make       `plan` itself
"""

from fastcap.planning.costs import Costs as Costs
from fastcap.planning.costs import Term as Term
from fastcap.planning.machine import Machine as Machine
from fastcap.planning.machine import read_machine as read_machine
from fastcap.planning.make import plan as plan
from fastcap.planning.plans import Compared as Compared
from fastcap.planning.plans import Comparison as Comparison
from fastcap.planning.plans import Plan as Plan
from fastcap.planning.sizes import MemoryPlan as MemoryPlan
from fastcap.planning.sizes import SitePlan as SitePlan
from fastcap.planning.sizes import Size as Size

__all__ = [
    "Compared",
    "Comparison",
    "Costs",
    "Machine",
    "MemoryPlan",
    "Plan",
    "SitePlan",
    "Size",
    "Term",
    "plan",
    "read_machine",
]
