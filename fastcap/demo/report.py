"""What the demo found: the values, and how they read as a table, as sentences and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcap.demo.probe import N_FOLDS, Scores
from fastcap.formatting import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

# Baselines closer than this, in accuracy, have their labels on either side of the lines.
CROWDED = 0.1
LABEL_LIFT = {"bottom": 2, "center": 0, "top": -2}  # points, by vertical alignment


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One layer's [CLS] vectors, and how well a linear probe reads them.

    Attributes:
        site: The module's name.
        shape: `(n_texts, width)`.
        n_bytes: Bytes captured at this layer.
        is_constant: Whether every text has the same vector here.
        scores: Balanced accuracy per fold.
    """

    site: str
    shape: tuple[int, ...]
    n_bytes: int
    is_constant: bool
    scores: Scores


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything that the demo found, wrote and measured.

    Attributes:
        layers: From the embedding to the last layer.
        words: The bag of words on the same folds.
        n_classes: Packages to tell apart.
        n_sources: Files that the docstrings are from.
        n_positions: Positions in all batches of the run, padding included.
        files: Activations, docstrings and plot, as written.
        secs: Seconds per phase, in the order in which they ran.
    """

    layers: tuple[LayerResult, ...]
    words: Scores
    n_classes: int
    n_sources: int
    n_positions: int
    files: tuple[Path, ...]
    secs: Mapping[str, float]

    @property
    def n_texts(self) -> int:
        return self.layers[0].shape[0]

    @property
    def chance(self) -> float:
        return 1 / self.n_classes

    @property
    def captured_bytes(self) -> int:
        return sum(layer.n_bytes for layer in self.layers)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the same layers at every position of the same batches."""
        return sum(layer.n_bytes // layer.shape[0] * self.n_positions for layer in self.layers)


def best_layer(layers: Sequence[LayerResult]) -> LayerResult:
    """The layer with the highest mean; the earliest one of equals."""
    return max(layers, key=lambda layer: layer.scores.mean)


def table(result: DemoResult) -> Table:
    """One row per layer, and the two baselines below; 80 columns are enough."""
    from rich.table import Table

    rows = Table(title="Linear probes on [CLS]: which package is a docstring from?", title_style="")
    rows.add_column("layer", no_wrap=True)
    for header in ("shape", "bytes", "balanced\naccuracy", "lowest to\nhighest fold"):
        rows.add_column(header, justify="right", no_wrap=True)
    for layer in result.layers:
        size = str(layer.shape), format_bytes(layer.n_bytes)
        rows.add_row(layer.site, *size, *_score_cells(layer.scores))
    rows.add_section()
    rows.add_row("TF-IDF bag of words", "", "", *_score_cells(result.words))
    rows.add_row("chance", "", "", f"{result.chance:.3f}", "")
    return rows


def _score_cells(scores: Scores) -> tuple[str, str]:
    return f"{scores.mean:.3f}", f"{scores.low:.3f} - {scores.high:.3f}"


def sentences(result: DemoResult) -> list[str]:
    """What the table does not say, one paragraph each."""
    return [_method(result), *_constant_layers(result), _finding(result), _bytes(result)]


def _method(result: DemoResult) -> str:
    return (
        f"{result.n_texts:,} docstrings from {result.n_sources} files of {result.n_classes} "
        f"packages; accuracy is the mean over {N_FOLDS} folds. The docstrings of one file are "
        "never on both sides of a split, so a probe cannot score by recognising a file."
    )


def _constant_layers(result: DemoResult) -> list[str]:
    return [
        f"At {layer.site!r} the probe can only guess: [CLS] is the same vector for every text "
        "there (the same token at the same position), until attention brings the text into it."
        for layer in result.layers
        if layer.is_constant
    ]


def _finding(result: DemoResult) -> str:
    best = best_layer(result.layers)
    return (
        f"The package is read best from {best.site!r} ({best.scores.mean:.3f}); a bag of words, "
        f"without any model, reaches {result.words.mean:.3f}, and guessing {result.chance:.3f}."
    )


def _bytes(result: DemoResult) -> str:
    ratio = result.whole_bytes / result.captured_bytes
    return (
        f"The capture copied {format_bytes(result.captured_bytes)}. Whole sequences from the same "
        f"{len(result.layers)} layers and batches, padding included, would have been "
        f"{format_bytes(result.whole_bytes)}, {ratio:.0f} times as much."
    )


def seconds(result: DemoResult) -> str:
    """Seconds per phase on one line."""
    phases = ", ".join(f"{name} {secs:.1f}" for name, secs in result.secs.items())
    return f"Seconds: {phases}; {sum(result.secs.values()):.1f} in all."


def figure(layers: Sequence[LayerResult], words: Scores, chance: float) -> Figure:
    """Balanced accuracy by layer, with both baselines as labelled lines."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = drawing.subplots()
    _draw_layers(axes, layers)
    _draw_baselines(axes, words.mean, chance)
    best = best_layer(layers)
    axes.set_title(
        f"A docstring's package is read best from {best.site} ({best.scores.mean:.2f})", loc="left"
    )
    axes.set_xlabel("layer whose [CLS] vector is probed")
    axes.set_ylabel(f"balanced accuracy\n(mean of {N_FOLDS} folds; bars: lowest to highest)")
    axes.spines[["top", "right"]].set_visible(False)
    return drawing


def _draw_layers(axes: Any, layers: Sequence[LayerResult]) -> None:
    means = [layer.scores.mean for layer in layers]
    # The mean of equal figures can be off by one bit, and bars of negative length are refused.
    below = [max(0, layer.scores.mean - layer.scores.low) for layer in layers]
    above = [max(0, layer.scores.high - layer.scores.mean) for layer in layers]
    axes.errorbar(
        range(len(layers)),
        means,
        [below, above],
        color="black",
        marker="o",
        capsize=3,
        linewidth=2,
        elinewidth=1,
    )
    axes.set_xticks(range(len(layers)), [layer.site.replace(".", ".\n", 1) for layer in layers])
    axes.set_ylim(0, 1)


def _draw_baselines(axes: Any, words: float, chance: float) -> None:
    """Lines across the axes, named in the right margin, where nothing else is drawn."""
    aligns = ("bottom", "top") if words >= chance else ("top", "bottom")
    words_align, chance_align = aligns if abs(words - chance) < CROWDED else ("center", "center")
    for value, style, align, label in (
        (words, "--", words_align, f"TF-IDF bag of words\n({words:.2f}, no model)"),
        (chance, ":", chance_align, f"chance ({chance:.3f})"),
    ):
        axes.axhline(value, color="black", linestyle=style, linewidth=1)
        axes.annotate(
            label,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, LABEL_LIFT[align]),
            textcoords="offset points",
            va=align,
        )
