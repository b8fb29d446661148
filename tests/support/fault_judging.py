"""What must hold of an archive after a fault, and after it was run again."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from fastcap.archive.reader import Archive
from fastcap.errors import FastcapError
from tests.support.disk import Disk, FileNode, Loss
from tests.support.fault_play import ROOT, TOTAL, present
from tests.support.fault_programs import Program, expected

ORPHAN = re.compile(r"\d{6}-\d{3}\.safetensors\.orphan")
SHARD = re.compile(r"/\d{6}-\d{3}\.safetensors$")
WRITER = re.compile(r"w-\d{5}-\d+-[0-9a-f]{8}")


def find_lost(program: Program, disk: Disk, saved: Collection[int]) -> str | None:
    """What was acknowledged and cannot be read, or can be read and is wrong."""
    torn = find_torn(disk)
    if torn is not None:
        return torn
    try:
        archive = Archive(ROOT, program.process(disk))
        if TOTAL in saved and archive.n_samples != program.n_samples:
            return f"the total is lost: {archive.n_samples}"
        missing = sorted(set(saved) - present(archive) - {TOTAL})
        if missing:
            return f"acknowledged samples are lost: {missing}"
        if archive.damages:
            return f"a committed group is damaged: {archive.damages[0].reason}"
        return find_wrong_value(program, archive)
    except FastcapError as error:
        if f"{ROOT}/meta.json" in disk.image():
            return f"the archive cannot be read: {error}"
        return f"acknowledged samples are lost with the archive: {error}" if saved else None


def find_torn(disk: Disk) -> str | None:
    """A shard under its final name that stock safetensors cannot read, committed or not."""
    for path, content in disk.image().items():
        if content is not None and SHARD.search(path):
            try:
                safetensors.torch.load(content)
            except safetensors.SafetensorError as error:
                return f"a file under its final name is not whole: {path}: {error}"
    return None


def find_unmended(program: Program, disk: Disk) -> str | None:
    """Whether every sample is there again, though a committed file is not what it was."""
    try:
        archive = Archive(ROOT, program.process(disk))
        if archive.ids != [(0, program.n_samples)]:
            return f"the archive has {archive.ids} of {program.n_samples} samples"
        return find_wrong_value(program, archive)
    except FastcapError as error:
        return f"the archive cannot be read: {error}"


def find_incomplete(program: Program, disk: Disk) -> str | None:
    """Whether every sample is there once, right, and nothing else is wrong."""
    try:
        archive = Archive(ROOT, program.process(disk))
        if archive.ids != [(0, program.n_samples)] or len(archive) != program.n_samples:
            return f"the archive has {archive.ids} of {program.n_samples} samples"
        if not archive.is_complete:
            return "the archive does not know that it is complete"
        problems = [each for each in archive.verify() if each.path not in unlisted_before(archive)]
        if problems:
            return f"verify: {problems[0].path}: {problems[0].what}"
        return find_wrong_value(program, archive)
    except FastcapError as error:
        return f"the archive cannot be read: {error}"


def unlisted_before(archive: Archive) -> set[Path]:
    """Whole shards of writers that may live, for all anybody knows: only verify tells of them."""
    return {
        leftover.path
        for writer in archive.writers
        if writer.is_live is None
        for leftover in writer.unlisted
    }


def find_wrong_value(program: Program, archive: Archive) -> str | None:
    samples = sorted(present(archive))
    for spec in program.streams:
        found = list(archive[spec.name])
        if len(found) != len(samples):
            return f"{spec.name!r} has {len(found)} values of {len(samples)} samples"
        for sample, value in zip(samples, found, strict=True):
            if not _is_same(value, expected(spec, sample)):
                return f"{spec.name!r} of sample {sample} is wrong"
    return None


def _is_same(found: Any, wanted: torch.Tensor) -> bool:
    if isinstance(found, str):
        return found.encode() == bytes(wanted.numpy())
    return (
        found.shape == wanted.shape
        and found.dtype == wanted.dtype
        and torch.equal(
            found.contiguous().view(-1).view(torch.uint8), wanted.view(-1).view(torch.uint8)
        )
    )


def find_leftover(disk: Disk, has_locks: bool = True) -> str | None:
    """A file that belongs to nothing, from what the disk holds and without the package's help.

    What a writer left before the machine was started again may stay: nobody can know from another
    machine that such a writer is dead. Without locks nobody can know it at all.
    """
    files = {
        Path(path): disk.file(number)
        for path, number in disk.walk()
        if isinstance(disk.nodes[number], FileNode) and path.startswith(str(ROOT))
    }
    for path, node in files.items():
        if path == ROOT / "meta.json":
            continue
        if path.parent.parent != ROOT or not WRITER.fullmatch(path.parent.name):
            return f"a file that belongs to nothing: {path}"
        if path.name == "journal.jsonl" or ORPHAN.fullmatch(path.name):
            continue  # a whole shard that no journal names is evidence, and set aside
        journal = files.get(path.parent / "journal.jsonl")
        lines = list(valid_lines(bytes(journal.data))) if journal else []
        if path.name in {file["name"] for line in lines[1:] for file in line.get("files", ())}:
            if not node.is_protected:
                return f"a committed file can be written: {path}"
        elif has_locks and _is_known_dead(lines, disk):
            return f"a file that no journal names: {path}"
    return None


def _is_known_dead(lines: list[dict[str, Any]], disk: Disk) -> bool:
    return bool(lines[0]["machine"] == disk.machine if lines else disk.boot == 0)


def valid_lines(content: bytes) -> Iterator[dict[str, Any]]:
    """The lines of a journal up to the first that is torn."""
    for line in content.split(b"\n")[:-1]:
        if line[:9] != b"%08x " % zlib.crc32(line[9:]):
            return
        yield json.loads(line[9:])


def find_problem(program: Program, disk: Disk) -> str | None:
    """After a run that went to its end: everything is there, and stays there."""
    problem = find_incomplete(program, disk) or find_leftover(disk, program.has_locks)
    if problem is None:
        after = disk.copy()
        after.cut_power(Loss(Loss.ALL))
        if after.image() != disk.image():
            problem = find_incomplete(program, after)
        if problem is not None:
            problem = f"after a power cut when all was done: {problem}"
    return problem
