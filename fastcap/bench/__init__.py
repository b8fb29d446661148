"""Capture overhead, measured: building blocks for your own tests and scripts.

overhead         any capture function's time beside the same passes without capture, paired
measure_floors   what this machine's memory, link and disk can do at best
predict          the time that these floors allow
record_timeline  what runs when, while fastcap captures
WAYS             capture functions to compare with

`fastcap bench` is all of it on the command line. Nothing here is imported by `import fastcap`.
"""

from fastcap.bench.case import Case as Case
from fastcap.bench.case import make_case as make_case
from fastcap.bench.floors import Floors as Floors
from fastcap.bench.floors import Prediction as Prediction
from fastcap.bench.floors import measure_floors as measure_floors
from fastcap.bench.floors import predict as predict
from fastcap.bench.hardware import Machine as Machine
from fastcap.bench.hardware import describe_machine as describe_machine
from fastcap.bench.overhead import Overhead as Overhead
from fastcap.bench.overhead import overhead as overhead
from fastcap.bench.recording import RecordingTwin as RecordingTwin
from fastcap.bench.recording import record_timeline as record_timeline
from fastcap.bench.timeline import Span as Span
from fastcap.bench.timeline import Timeline as Timeline
from fastcap.bench.timing import Ratio as Ratio
from fastcap.bench.timing import paired_ratio as paired_ratio
from fastcap.bench.ways import WAYS as WAYS

__all__ = [
    "WAYS",
    "Case",
    "Floors",
    "Machine",
    "Overhead",
    "Prediction",
    "Ratio",
    "RecordingTwin",
    "Span",
    "Timeline",
    "describe_machine",
    "make_case",
    "measure_floors",
    "overhead",
    "paired_ratio",
    "predict",
    "record_timeline",
]
