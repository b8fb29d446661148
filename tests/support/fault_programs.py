"""What writers do, as data: small programs that together take every path of the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fastcap.archive.layout import StreamSpec
from fastcap.archive.limits import GroupLimits
from fastcap.archive.meta import Meta
from tests.support.disk import Disk
from tests.support.filesystem import Fault, SimulatedFiles, Watch


@dataclass(frozen=True)
class Life:
    """What one process does, from its start to its end.

    Attributes:
        batches: In their order.
        rank: The writer's.
        per_commit: Batches to a commit; 0 leaves it to the limits.
        n_left: Batches at the end that it never commits.
        is_resume: Whether it tidies first, and leaves out what is there.
        total: Whether it records at its end how many samples there are.
        dies: Whether it ends as a killed process does, with its writer open.
        is_late: Whether a group is committed only when the next batch is written.
        has_failed_passes: Whether each batch is first written in part, by a pass that fails.
    """

    batches: tuple[int, ...]
    rank: int = 0
    per_commit: int = 1
    n_left: int = 0
    is_resume: bool = True
    total: bool = False
    dies: bool = False
    is_late: bool = False
    has_failed_passes: bool = False


@dataclass(frozen=True)
class Program:
    """Several lives and what they write.

    Attributes:
        name: Says what is special.
        streams: Of every sample.
        stages: Lives of one stage take turns; a stage begins when the one before it is over.
        n_samples: Ids are 0 to this.
        batch_size: Batch `b` is the samples from `b * batch_size` on.
        limits: Sizes of groups and files, tiny.
        is_sized: Whether the archive knows `n_samples` from the start.
        has_root: Whether the directory is there before.
        has_locks: Whether the file system has locks.
        has_links: Whether it has hard links. Without them, two runs that begin at the very same
            moment could publish two metas, so that is not played.
    """

    name: str
    streams: tuple[StreamSpec, ...]
    stages: tuple[tuple[Life, ...], ...]
    n_samples: int = 4
    batch_size: int = 2
    limits: GroupLimits = GroupLimits()  # noqa: RUF009 - frozen
    is_sized: bool = True
    has_root: bool = False
    has_locks: bool = True
    has_links: bool = True

    def __str__(self) -> str:
        return self.name

    def process(
        self,
        disk: Disk,
        fault: Fault | None = None,
        watch: Watch | None = None,
        log: list[str] | None = None,
    ) -> SimulatedFiles:
        """A process on the kind of file system that the program runs on."""
        return SimulatedFiles(disk, fault, watch, log, self.has_locks, self.has_links)

    def meta(self, archive: str = "5d1f") -> Meta:
        """What a writer brings; each brings an id of its own."""
        n_samples = self.n_samples if self.is_sized else None
        config = {"program": self.name}
        return Meta(archive, self.streams, n_samples, self.batch_size, config, self.name, {})

    @property
    def is_alone(self) -> bool:
        """Whether no two processes live at once."""
        return all(len(stage) == 1 for stage in self.stages)

    @property
    def n_batches(self) -> int:
        return -(-self.n_samples // self.batch_size)

    def samples(self, batch: int) -> list[int]:
        start = batch * self.batch_size
        return list(range(start, min(start + self.batch_size, self.n_samples)))

    def values(
        self, samples: Sequence[int]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Sequence[int]]]:
        """What `Writer.append` takes."""
        values, lengths = {}, {}
        for spec in self.streams:
            found = [expected(spec, sample) for sample in samples]
            values[spec.name] = torch.cat(found) if spec.is_ragged else torch.stack(found)
            if spec.is_ragged:
                lengths[spec.name] = [len(value) for value in found]
        return values, lengths


@cache
def expected(spec: StreamSpec, sample: int) -> Tensor:
    """One sample's value of a stream: all bits are drawn, NaN and all."""
    n_rows = (sample * 3 + len(spec.name)) % 4
    shape = (n_rows, *spec.shape) if spec.is_ragged else spec.shape
    drawn = torch.Generator().manual_seed(sample * 1009 + sum(spec.name.encode()))
    n_bytes = torch.Size(shape).numel() * spec.torch_dtype.itemsize
    raw = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=drawn)
    if spec.dtype == "BOOL" or spec.is_text:
        raw = raw % (2 if spec.dtype == "BOOL" else 128)
    return raw.view(spec.torch_dtype).reshape(shape)


def _fixed(name: str, *shape: int, dtype: str = "F32", kind: str = "site") -> StreamSpec:
    return StreamSpec(name, kind, dtype, shape)


def _ragged(name: str, *shape: int, dtype: str = "BF16", kind: str = "site") -> StreamSpec:
    return StreamSpec(name, kind, dtype, shape, is_ragged=True)


A = _fixed("a", 5)
WIDE = _fixed("wide", 200, dtype="BF16")  # 400 bytes a sample
R = _ragged("r", 3)
LABEL = _fixed("label:y", dtype="I64", kind="label")
TEXT = StreamSpec("batch:text", "batch", "U8", (), is_ragged=True, is_text=True)
IDS = _ragged("batch:input_ids", dtype="I64", kind="batch")

ALONE = GroupLimits(own_file_bytes=1)
MIXED = GroupLimits(own_file_bytes=200)
SMALL_GROUPS = GroupLimits(own_file_bytes=200, group_bytes=500)


def _one(*batches: int, **changes: object) -> tuple[tuple[Life, ...], ...]:
    return ((Life(batches, **changes),),)  # type: ignore[arg-type]


PROGRAMS = (
    Program("one stream, one file, one commit", (A,), _one(0, 1, per_commit=2)),
    Program("one stream, two commits", (A,), _one(0, 1)),
    Program("two streams in one file", (A, R), _one(0, 1)),
    Program("two streams, a file each", (A, R), _one(0, 1, per_commit=2), limits=ALONE),
    Program(
        "large and small streams",
        (WIDE, A, LABEL),
        _one(0, 1, per_commit=2),
        limits=MIXED,
    ),
    Program("ragged only", (R, IDS), _one(0, 1)),
    Program(
        "no rows at all",
        (_ragged("none", 0), _fixed("empty", 0, 3)),
        _one(0, 1),
    ),
    Program("a ragged stream of its own file", (R, A), _one(0, 1), limits=ALONE),
    Program("labels, texts and inputs", (A, LABEL, TEXT, IDS), _one(0, 1, per_commit=2)),
    Program(
        "narrow dtypes before wide ones",
        (
            _fixed("flag", dtype="BOOL"),
            _fixed("half", 3, dtype="F16"),
            _fixed("double", 1, dtype="F64"),
        ),
        _one(0, 1, per_commit=2),
    ),
    Program(
        "limits end the groups",
        (WIDE, A),
        _one(0, 1, 2, per_commit=0),
        n_samples=6,
        limits=SMALL_GROUPS,
    ),
    Program(
        "time ends the groups",
        (A,),
        _one(0, 1, 2, per_commit=0),
        n_samples=6,
        limits=GroupLimits(secs=4),
    ),
    Program("a short last batch", (A, R), _one(0, 1), n_samples=3),
    Program("batches of one", (A,), _one(0, 1, 2), n_samples=3, batch_size=1),
    Program("the end is left out", (A, R), _one(0, 1, n_left=1)),
    Program("nothing is committed", (A, WIDE), _one(0, 1, n_left=2), limits=MIXED),
    Program("the directory was there", (A,), _one(0, 1), has_root=True),
    Program(
        "one writer after another",
        (A,),
        ((Life((0,)),), (Life((1,)),)),
    ),
    Program(
        "a resume finds half of it",
        (A, R),
        ((Life((0, 1, 2), n_left=1, per_commit=2),), (Life((0, 1, 2)),)),
        n_samples=6,
    ),
    Program(
        "a resume after a death",
        (A,),
        ((Life((0, 1), n_left=1, dies=True),), (Life((0, 1)),)),
    ),
    Program(
        "a death before the first commit",
        (A, WIDE),
        ((Life((0,), n_left=1, dies=True),), (Life((0,)),)),
        n_samples=2,
        limits=MIXED,
    ),
    Program(
        "a resume with nothing to do",
        (A,),
        ((Life((0, 1), per_commit=2),), (Life((0, 1)),)),
    ),
    Program(
        "the same samples twice",
        (A,),
        ((Life((0, 1)),), (Life((1, 0), is_resume=False),)),
    ),
    Program(
        "another order",
        (A, R),
        _one(1, 0, 2, per_commit=2),
        n_samples=6,
    ),
    Program("the data say at their end how many", (A,), _one(0, 1, total=True), is_sized=False),
    Program(
        "only the total is new",
        (A,),
        ((Life((0, 1)),), (Life((), total=True),)),
        is_sized=False,
    ),
    Program(
        "passes that fail",
        (A, R, WIDE),
        _one(0, 1, has_failed_passes=True),
        limits=MIXED,
    ),
    Program(
        "a group is committed while the next is written",
        (A, R),
        _one(0, 1, 2, is_late=True),
        n_samples=6,
        limits=ALONE,
    ),
    Program(
        "no locks",
        (A, WIDE),
        ((Life((0,)),), (Life((0, 1)),)),
        limits=MIXED,
        has_locks=False,
    ),
    Program(
        "no links",
        (A,),
        ((Life((0,)),), (Life((0, 1)),)),
        has_links=False,
    ),
    Program("two ranks at once", (A,), ((Life((0,)), Life((1,), rank=1)),)),
    Program(
        "two ranks at once, files of their own",
        (A, R),
        ((Life((0, 2), per_commit=2), Life((1,), rank=1)),),
        n_samples=6,
        limits=ALONE,
    ),
    Program(
        "two runs of the same",
        (A,),
        ((Life((0, 1)), Life((0, 1))),),
    ),
    Program(
        "three writers in a row, ranks change",
        (A,),
        ((Life((0,), rank=1),), (Life((1,), dies=True),), (Life((2,), rank=1),)),
        n_samples=6,
    ),
)
