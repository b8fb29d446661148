"""What torch's CUDA sanitizer watches, in a process of its own: a small store.

Where `is_broken`, the store's copies do not wait for its packs: the control, which shows that the
sanitizer sees them.
"""

SCRIPT = """
from contextlib import nullcontext
import torch, fastcap, fastcap.engine
from tests.support.mutation import Change

is_broken = {is_broken}
fastcap.engine.modes_off = nullcontext  # the sanitizer is a dispatch mode, and must see packs
change = Change(
    "fastcap.transfer.staged:StagedTransfer._copy_to_slot",
    "after=chunk.record_packed(),",
    "after=(),",
)
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4))).cuda()
with change.applied() if is_broken else nullcontext():
    with fastcap.ActivationStore(model, ["0", "1", "2"], staging_bytes=16384) as store:
        for _ in range(4):
            model(torch.randn(64, 64, device="cuda"))
        store.activations
print("done")
"""
