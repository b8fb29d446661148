"""Measure fastcap beside its peers, and write down what came out.

    make bench-peers
    .venv-peers/bin/python -m benchmarks.peers [--rounds 25] [--out benchmarks/results]

Prints the tables of docs/performance.md. Exit status: 0, also where a bar is missed, which they
say; 1 when fastcap's values differ from the oracle's; 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any
from unittest import mock

from safetensors.torch import save_file

import fastcap
from benchmarks.checkout import PROJECT, RESULTS
from benchmarks.memory import RETURN_AT_ONCE
from benchmarks.peers.questions import (
    SIZES,
    Question,
    batches,
    draw_token_ids,
    read_model,
    write_model,
)
from benchmarks.peers.ways import (
    BASELINE,
    COLLECTORS,
    FASTCAP,
    PEERS,
    TRANSFORMER_LENS,
    why_not,
)
from benchmarks.programs import CANNOT_START, begin, finish, parser_of, refuse, run_child, say
from fastcap import reference
from fastcap.bench.equality import Difference
from fastcap.bench.floors import measure_floors
from fastcap.bench.report import INTERVAL
from fastcap.spec import make_selection

MODULES = {"nnsight": "nnsight", "transformer-lens": "transformer_lens", "sae-lens": "sae_lens"}
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "datasets", *PEERS)
NEWER_TRANSFORMER_LENS = Path(sys.prefix) / "transformer-lens-4"
"""Beside the release that SAELens needs, which is older."""

ATTENTIONS = {"values": "sdpa", "values_to_eager": "eager"}
"""The oracles: fields of a result file, and how the model computes attention."""

# No hub, no bars.
QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_MODE": "disabled",
}

KEEP_FREED = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""For processes that are timed: memory that one pass gave back is not touched anew by the next.
Left to itself, glibc returns it or not by what else lies in the heap, which is nobody's cost.
"""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    missing = [peer for peer in options.peers if util.find_spec(MODULES[peer]) is None]
    if missing:
        return refuse(
            f"{', '.join(missing)} cannot be imported by {sys.executable}. `make bench-peers` "
            "builds an environment that has every peer; --peers without a name measures none."
        )
    origin = begin(options)
    if origin is None:
        return CANNOT_START
    shape, asked = SIZES[options.size]
    floors = measure_floors("cpu")
    with mock.patch.dict(os.environ, QUIET), tempfile.TemporaryDirectory() as folder:
        place = Place(options.size, Path(folder))
        write_model(place.model, shape)
        answers = [answer_in_turns(place, each, options.peers, options.rounds) for each in asked]
        for question, answer in zip(asked, answers, strict=True):
            answer["peaks"] = measure_memory(place, question, answer["comparisons"])
    figures = {
        "versions": installed_versions(),
        "model": asdict(shape),
        "floors": asdict(floors),
        "interval": INTERVAL,
        "questions": answers,
    }
    finish(options, "peers", origin, figures)
    return 0 if all(Difference(**each["values"][FASTCAP]).is_equal for each in answers) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.peers", __doc__, rounds=25, out=Path(RESULTS))
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    return parser.parse_args(arguments)


def installed_versions() -> dict[str, str]:
    """Of fastcap, and of every package that is here; the release of TransformerLens that is run."""
    versions = {FASTCAP: fastcap.__version__}
    found = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    newer = metadata.distributions(name=TRANSFORMER_LENS, path=[str(NEWER_TRANSFORMER_LENS)])
    found[TRANSFORMER_LENS] = [*newer, *found[TRANSFORMER_LENS]]
    return versions | {name: of[0].version for name, of in found.items() if of}


@dataclass(frozen=True, slots=True)
class Place:
    """Where processes find the model and the oracles' values: a temporary folder."""

    size: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def run(
        self,
        task: str,
        question: Question,
        ways: Sequence[str],
        variables: Mapping[str, str],
        **fields: Any,
    ) -> dict[str, Any]:
        """A task of `worker` in a fresh process that has the releases its ways need.

        Raises:
            RuntimeError: It failed; with the end of what it said.
        """
        fields |= {"size": self.size, "model": str(self.model), "question": question.name}
        arguments = ("-m", "benchmarks.peers.worker", task, json.dumps(fields))
        return run_child(*arguments, variables={**self._environment(ways), **variables})

    def _environment(self, ways: Sequence[str]) -> dict[str, str]:
        """The newer release for TransformerLens only, and a cache that has nothing in it."""
        paths = [str(PROJECT)]
        if TRANSFORMER_LENS in ways and NEWER_TRANSFORMER_LENS.exists():
            paths.insert(0, str(NEWER_TRANSFORMER_LENS))
        caches = {"HF_HOME": str(self.folder / "huggingface")}
        return {**caches, "PYTHONPATH": os.pathsep.join(paths)}


def write_oracles(place: Place, question: Question) -> list[str]:
    """Files with the right values, one for each of `ATTENTIONS`."""
    token_ids = draw_token_ids(question, SIZES[place.size][0], question.n_samples)
    paths = []
    for field, attention in ATTENTIONS.items():
        values = reference.extract(
            read_model(place.model, attention),
            (ids for _, ids in batches(token_ids, question)),
            question.sites,
            lambda model, ids: model(input_ids=ids),
            selection=make_selection(question.position),
        )
        paths.append(str(place.folder / f"{question.name}-{field}.safetensors"))
        save_file(values, paths[-1])
    return paths


def answer_in_turns(
    place: Place, question: Question, peers: Sequence[str], n_rounds: int
) -> dict[str, Any]:
    """A question's fields of the result file but its memory: times and values, from a process per
    peer; from one without any, where there is none that has an answer.
    """
    say(f"{question.name}: {question.what}")
    oracles = write_oracles(place, question)
    not_measured = {way: why for way in peers if (why := why_not(way, question)) is not None}
    shape = SIZES[place.size][0]
    answer: dict[str, Any] = {
        **asdict(question),
        "result_bytes": question.result_bytes(shape, question.n_samples),
        "memory_result_bytes": question.result_bytes(shape, question.n_memory_samples or 0),
        "comparisons": [],
        "not_measured": not_measured,
        **{field: {} for field in ATTENTIONS},
    }
    for others in [[way] for way in peers if way not in not_measured] or [[]]:
        ways = [BASELINE, FASTCAP, *others]
        found = place.run(
            "time", question, ways, KEEP_FREED, names=ways, n_rounds=n_rounds, oracles=oracles
        )
        say(f"{question.name}: {', '.join(ways)} timed")
        answer["comparisons"].append(found["secs"])
        for way, differences in found["differences"].items():
            for field, each in zip(ATTENTIONS, differences, strict=True):
                kept = answer[field].setdefault(way, each)
                if each["n_different"] > kept["n_different"]:
                    answer[field][way] = each
    return answer


def measure_memory(
    place: Place, question: Question, comparisons: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Peak memory by way and how batches are collected, freed memory being returned at once. Two
    processes at a time: they spend more time importing than capturing.
    """
    ways = dict.fromkeys(way for each in comparisons for way in each)
    wanted = [(way, collector) for way in ways for collector in _collectors(question, way)]

    def peak(run: tuple[str, str]) -> dict[str, Any]:
        way, collector = run
        return place.run("peak", question, [way], RETURN_AT_ONCE, way=way, collector=collector)

    peaks: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(2) as pool:
        for (way, collector), found in zip(wanted, pool.map(peak, wanted), strict=True):
            peaks.setdefault(way, {})[collector] = found
            say(f"{question.name}: memory of {way} measured ({collector})")
    return peaks


def _collectors(question: Question, way: str) -> Iterator[str]:
    """Both ways of collecting batches, where they are the caller's and large."""
    if question.n_memory_samples is None:
        return iter(())
    both = way in PEERS and question.position is None and not question.to_disk
    return iter(COLLECTORS if both else ["rows"])


if __name__ == "__main__":
    sys.exit(main())
