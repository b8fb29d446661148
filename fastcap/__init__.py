"""fastcap: exact activation capture for PyTorch models at almost no cost to the forward pass.

ActivationStore            capture while you drive the passes yourself
extract_representations    from a dataset to one tensor per site
list_sites                 what can be captured in a model
plan                       what a run will take, before it runs
save_activations           to .npz or .safetensors
stream                     records batch by batch, while the next batch runs
"""

from fastcap.activations import ActivationStore as ActivationStore
from fastcap.errors import FastcapError as FastcapError
from fastcap.errors import FastcapWarning as FastcapWarning
from fastcap.listing import list_sites as list_sites
from fastcap.planning.make import plan as plan
from fastcap.records import BatchRecords as BatchRecords
from fastcap.records import Record as Record
from fastcap.records import Statistics as Statistics
from fastcap.representations import extract_representations as extract_representations
from fastcap.saving import save_activations as save_activations
from fastcap.streams import Stream as Stream
from fastcap.streams import stream as stream

__all__ = [
    "ActivationStore",
    "BatchRecords",
    "FastcapError",
    "FastcapWarning",
    "Record",
    "Statistics",
    "Stream",
    "extract_representations",
    "list_sites",
    "plan",
    "save_activations",
    "stream",
]

__version__ = "0.1.0"
