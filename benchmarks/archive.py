"""What writing an archive costs, beside writing the same bytes with nothing but `write`.

    python -m benchmarks.archive [--rounds 9] [--gigabytes 1] [--memory 4 20]
        [--out benchmarks/results]

The model hands out values that are there already, so what is timed is capturing and writing. The
floor writes as many bytes from memory into files of the same sizes, with the same syncs. NumPy's
`savez`, which holds everything in memory, is there for comparison. The ways alternate, round by
round. Memory is the peak of a process of its own that extracts as many gigabytes as asked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import fastcap
from benchmarks.memory import reset_peak, resident_bytes
from benchmarks.programs import parser_of, run, run_child, say
from fastcap.bench.timing import measure_rounds, paired_ratio

N_SITES = 4
BATCH_SIZE = 16
N_TOKENS = 128
WIDTH = 1024
SAMPLE_BYTES = N_SITES * N_TOKENS * WIDTH * 4
HOST_BYTES = 128 << 20
GB = 10**9
PLAIN = "plain write"


class Source(nn.Module):
    """A model whose layers have nothing to compute: each hands out what it holds."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.values = torch.randn(BATCH_SIZE, N_TOKENS, WIDTH, generator=generator)
        self.layers = nn.ModuleList(_Layer(self.values + site) for site in range(N_SITES))

    def forward(self, ids: Tensor) -> None:
        for layer in self.layers:
            layer(ids)


class _Layer(nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Buffer(values)

    def forward(self, ids: Tensor) -> Tensor:
        return self.values[: len(ids)]


class Ids(Dataset[dict[str, Tensor]]):
    """As many samples as make up `n_bytes` of activations."""

    def __init__(self, n_bytes: int) -> None:
        self._n_samples = max(1, n_bytes // SAMPLE_BYTES)

    def __len__(self) -> int:
        return self._n_samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([index % 1000])}

    def fingerprint(self) -> int:
        return self._n_samples


SITES = [f"layers.{index}" for index in range(N_SITES)]


def write_archive(model: Source, n_bytes: int, folder: Path) -> fastcap.Archive:
    return fastcap.extract(
        model,
        Ids(n_bytes),
        SITES,
        folder,
        device=next(model.buffers()).device,
        batch_size=BATCH_SIZE,
        pinned_bytes=HOST_BYTES,
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """What the plain loop repeats: sizes of files, and syncs beside one for each of them."""

    file_bytes: tuple[int, ...]
    other_syncs: int


def layout_of(archive: fastcap.Archive) -> Layout:
    groups = [(writer, group) for writer in archive.writers for group in writer.groups]
    sizes = tuple(file.n_bytes for _, group in groups for file in group.files)
    return Layout(sizes, 2 * len(groups))  # of each group the directory, and its journal line


def write_plainly(model: Source, layout: Layout, folder: Path) -> None:
    """The same bytes into files of the same sizes, synced as often, in writes of one batch."""
    folder.mkdir()
    data = model.values.view(-1).view(torch.uint8).numpy().data
    for number, n_bytes in enumerate(layout.file_bytes):
        fd = os.open(folder / str(number), os.O_CREAT | os.O_WRONLY)
        while n_bytes:
            n_bytes -= os.write(fd, data[: min(n_bytes, len(data))])
        os.fsync(fd)
        os.close(fd)
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(layout.other_syncs):
        os.fsync(fd)
    os.close(fd)


def save_npz(model: Source, n_bytes: int, folder: Path) -> None:
    """What is done today: a list per site, concatenated, saved."""
    folder.mkdir()
    values: dict[str, list[Tensor]] = {site: [] for site in SITES}
    for start in range(0, len(Ids(n_bytes)), BATCH_SIZE):
        n_batch = min(BATCH_SIZE, len(Ids(n_bytes)) - start)
        for site in SITES:
            values[site].append(model.get_submodule(site)(range(n_batch)).clone())
    arrays: dict[str, Any] = {site: torch.cat(found).numpy() for site, found in values.items()}
    np.savez(folder / "all.npz", **arrays)


def measure(n_rounds: int, n_bytes: int) -> dict[str, object]:
    """Seconds of each way by round, and ratios to the plain loop."""
    model = Source().eval()
    with tempfile.TemporaryDirectory(prefix="fastcap-bench-") as scratch:
        parent = Path(scratch)
        archive = write_archive(model, n_bytes, parent / "first")
        problems = archive.verify()
        assert not problems, problems
        layout = layout_of(archive)
        shutil.rmtree(parent / "first")
        ways: dict[str, Callable[[Path], object]] = {
            PLAIN: lambda folder: write_plainly(model, layout, folder),
            "archive": lambda folder: write_archive(model, n_bytes, folder),
            "np.savez": lambda folder: save_npz(model, n_bytes, folder),
        }

        def run_round(order: Sequence[str]) -> Mapping[str, tuple[float, None]]:
            return {way: (_timed(ways[way], parent / "way"), None) for way in order}

        secs = measure_rounds(list(ways), run_round, n_rounds, lambda way, value: None)
    ratios = {
        f"{way} to {PLAIN}": dataclasses.asdict(paired_ratio(secs[way], secs[PLAIN]))
        for way in ("archive", "np.savez")
    }
    sizes = layout.file_bytes
    figures = {"bytes": sum(sizes), "files": len(sizes), "rounds": n_rounds, "secs": secs}
    return {**figures, **ratios}


def _timed(way: Callable[[Path], object], folder: Path) -> float:
    os.sync()  # what the way before left to write is not this one's
    started = time.perf_counter()
    way(folder)
    secs = time.perf_counter() - started
    shutil.rmtree(folder)
    return secs


def memory_of_run(
    n_bytes: int, device: torch.device | str = "cpu", folder: Path | None = None
) -> dict[str, int]:
    """Peak growth of this process while it extracts so much, over one that is about to."""
    model = Source().eval().to(device)
    with tempfile.TemporaryDirectory(prefix="fastcap-bench-", dir=folder) as scratch:
        parent = Path(scratch)
        write_archive(model, SAMPLE_BYTES, parent / "warm-up")  # imports, threads, allocator
        before = reset_peak()
        archive = write_archive(model, n_bytes, parent / "acts")
        growth = resident_bytes("VmHWM") - before
        written = sum(group.n_bytes for writer in archive.writers for group in writer.groups)
    return {"bytes": written, "growth_bytes": growth, "slot_bytes": HOST_BYTES}


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("benchmarks.archive", __doc__, rounds=9)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of each round and way")
    parser.add_argument("--memory", type=float, nargs="*", default=[], help="gigabytes")
    parser.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory_child is not None:
        say(json.dumps(memory_of_run(options.memory_child)))
        return 0
    child = ("-m", "benchmarks.archive", "--memory-child")
    return run(
        options,
        "archive",
        lambda: {
            "memory": [run_child(*child, str(int(size * GB))) for size in options.memory],
            **measure(options.rounds, int(options.gigabytes * GB)),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
