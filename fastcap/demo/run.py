"""The demo from the first file read to the last file written."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from fastcap.demo.checkpoint import (
    capture_first_token,
    count_positions,
    find_checkpoint,
    load_checkpoint,
    tokenise,
)
from fastcap.demo.corpus import PACKAGES, Docstring, read_docstrings, standard_library
from fastcap.demo.probe import N_FOLDS, Scores, probe_activations, probe_words, split_by_source
from fastcap.demo.report import DemoResult, LayerResult, figure
from fastcap.errors import SaveError
from fastcap.progress import Progress
from fastcap.saving import save_activations
from fastcap.spec import as_count


class _Phases:
    """Says what starts, and measures how long it takes."""

    def __init__(self, announce: Callable[[str], object]) -> None:
        self._announce = announce
        self.secs: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, announcement: str) -> Iterator[None]:
        self._announce(announcement)
        started = time.perf_counter()
        yield
        self.secs[name] = time.perf_counter() - started


def run_demo(
    folder: Path,
    *,
    limit: int = 150,
    seed: int = 0,
    progress: Progress = False,
    announce: Callable[[str], object] = lambda line: None,
) -> DemoResult:
    """Capture [CLS] at every layer of a text encoder, and probe each for a docstring's package.

    Args:
        folder: Where the activations, their docstrings and the plot are written.
        limit: Docstrings per package, at least one per fold.
        seed: Chooses the docstrings of large packages, and the folds.
        progress: As in `extract_representations`.
        announce: Told what starts, one line at a time.

    Raises:
        MissingExtraError: An optional package or the checkpoint is not installed.
        SaveError: The folder cannot be written.
        ArgumentError: `limit` is too small.
    """
    limit = as_count("limit", limit, at_least=N_FOLDS)
    checkpoint = find_checkpoint()
    with _saving_in(folder):  # before anything slow, so that a wrong path is known at once
        folder.mkdir(parents=True, exist_ok=True)
    phase = _Phases(announce)
    with phase("docstrings", f"Reading docstrings of {', '.join(PACKAGES)}"):
        docstrings = read_docstrings(standard_library(), PACKAGES, limit, seed)
    with phase("model", f"Loading all-MiniLM-L6-v2 and tokenising {len(docstrings):,} docstrings"):
        model, tokeniser = load_checkpoint(checkpoint)
        docstrings, samples = _longest_first(
            docstrings, tokenise(tokeniser, (d.text for d in docstrings))
        )
    with phase("capture", "Capturing [CLS] at every layer, in one run through the model"):
        acts = capture_first_token(model, samples, tokeniser.pad_token_id, progress)
    with phase("probes", f"Probing {len(acts)} layers and a bag of words on {N_FOLDS} folds"):
        layers, words = _probe(acts, docstrings, seed)
    with phase("files", f"Writing to {folder}"), _saving_in(folder):
        files = (
            save_activations(acts, folder / "activations.npz"),
            _write_docstrings(docstrings, folder / "docstrings.jsonl"),
            _write_plot(layers, words, folder / "accuracy-by-layer.png"),
        )
    return DemoResult(
        layers=layers,
        words=words,
        n_classes=len(PACKAGES),
        n_sources=len({d.source for d in docstrings}),
        n_positions=count_positions(samples),
        files=files,
        secs=phase.secs,
    )


@contextlib.contextmanager
def _saving_in(folder: Path) -> Iterator[None]:
    try:
        yield
    except SaveError:
        raise
    except OSError as error:
        message = (
            f"Cannot write to {str(folder)!r}: {error.strerror or error}. Choose another folder."
        )
        raise SaveError(error.errno, message) from error


def _longest_first(
    docstrings: Sequence[Docstring], samples: Sequence[dict[str, Tensor]]
) -> tuple[list[Docstring], list[dict[str, Tensor]]]:
    """Both in order of length: batches need little padding, and the first one the most memory."""
    order = sorted(range(len(samples)), key=lambda row: -len(samples[row]["input_ids"]))
    return [docstrings[row] for row in order], [samples[row] for row in order]


def _probe(
    acts: Mapping[str, Tensor], docstrings: Sequence[Docstring], seed: int
) -> tuple[tuple[LayerResult, ...], Scores]:
    labels = [d.package for d in docstrings]
    folds = split_by_source(labels, [d.source for d in docstrings], seed)
    layers = tuple(
        LayerResult(
            site=site,
            shape=tuple(values.shape),
            n_bytes=values.nbytes,
            is_constant=bool((values == values[0]).all()),
            scores=probe_activations(values.numpy(), labels, folds),
        )
        for site, values in acts.items()
    )
    return layers, probe_words([d.text for d in docstrings], labels, folds)


def _write_docstrings(docstrings: Sequence[Docstring], path: Path) -> Path:
    lines = [
        json.dumps({"package": d.package, "source": d.source, "text": d.text}) for d in docstrings
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_plot(layers: Sequence[LayerResult], words: Scores, path: Path) -> Path:
    figure(layers, words, 1 / len(PACKAGES)).savefig(path, dpi=150)
    return path
