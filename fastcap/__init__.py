"""fastcap: exact activation capture for PyTorch models at almost no cost to the forward pass.

ActivationStore            capture while you drive the passes yourself
Consumer                   receive what passes capture in a class of your own
extract                    from a dataset to an archive on disk, of any size
extract_representations    from a dataset to one tensor per site
list_sites                 what can be captured in a model
load_activations           what save_activations has written
open_archive               read an archive
plan                       what a run will take, before it runs
save_activations           to .npz or .safetensors
stream                     records batch by batch, while the next batch runs
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastcap._version import __version__ as __version__
from fastcap.errors import FastcapError as FastcapError
from fastcap.errors import FastcapWarning as FastcapWarning

if TYPE_CHECKING:
    from fastcap import planning as planning
    from fastcap.activations import ActivationStore as ActivationStore
    from fastcap.archive.reader import Archive as Archive
    from fastcap.archive.reader import open_archive as open_archive
    from fastcap.consumers.base import Consumer as Consumer
    from fastcap.extraction.run import extract as extract
    from fastcap.model.listing import list_sites as list_sites
    from fastcap.planning.make import plan as plan
    from fastcap.planning.plans import Plan as Plan
    from fastcap.records import BatchRecords as BatchRecords
    from fastcap.records import Record as Record
    from fastcap.records import Statistics as Statistics
    from fastcap.representations import extract_representations as extract_representations
    from fastcap.saving import load_activations as load_activations
    from fastcap.saving import save_activations as save_activations
    from fastcap.streaming import Stream as Stream
    from fastcap.streaming import stream as stream

__all__ = [
    "ActivationStore",
    "Archive",
    "BatchRecords",
    "Consumer",
    "FastcapError",
    "FastcapWarning",
    "Plan",
    "Record",
    "Statistics",
    "Stream",
    "extract",
    "extract_representations",
    "list_sites",
    "load_activations",
    "open_archive",
    "plan",
    "save_activations",
    "stream",
]

_LOADED_WHEN_NAMED = {
    "ActivationStore": "fastcap.activations",
    "Archive": "fastcap.archive.reader",
    "BatchRecords": "fastcap.records",
    "Consumer": "fastcap.consumers.base",
    "Plan": "fastcap.planning.plans",
    "Record": "fastcap.records",
    "Statistics": "fastcap.records",
    "Stream": "fastcap.streaming",
    "extract": "fastcap.extraction.run",
    "extract_representations": "fastcap.representations",
    "list_sites": "fastcap.model.listing",
    "load_activations": "fastcap.saving",
    "open_archive": "fastcap.archive.reader",
    "plan": "fastcap.planning.make",
    "save_activations": "fastcap.saving",
    "stream": "fastcap.streaming",
}
"""Whatever needs torch: `fastcap --help` answers without it, and nobody waits for what they do not
name."""


if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name == "planning":  # fastcap.planning.Machine is an argument of plan
            return import_module("fastcap.planning")
        if name not in _LOADED_WHEN_NAMED:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_LOADED_WHEN_NAMED[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
