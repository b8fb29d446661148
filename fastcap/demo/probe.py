"""How well a linear classifier tells the classes, on source files it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

N_FOLDS = 3
# Inverse regularisation, one for all layers; 1 moves no layer by more than 0.04.
PROBE_C = 0.01
# The best of 1, 10 and 100 for the bag of words, so that the baseline is not a weak one.
WORDS_C = 10.0

Array: TypeAlias = npt.NDArray[Any]
Fold: TypeAlias = tuple[Array, Array]
"""Indices to train on, and indices to test on."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Balanced accuracy (the mean over classes of the share found), one figure per fold."""

    per_fold: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.per_fold)

    @property
    def low(self) -> float:
        return min(self.per_fold)

    @property
    def high(self) -> float:
        return max(self.per_fold)


def split_by_source(labels: Sequence[str], sources: Sequence[str], seed: int = 0) -> list[Fold]:
    """Folds with classes as even as can be, and each source file on one side only.

    Docstrings of one file resemble each other: on a random split a classifier recognises the file,
    and every layer scores alike.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(labels)), np.asarray(labels), np.asarray(sources)))


def probe_activations(acts: Array, labels: Sequence[str], folds: Sequence[Fold]) -> Scores:
    """Scores of logistic regression on standardised activations of shape `(n_texts, width)`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    return _score(
        [StandardScaler(), LogisticRegression(C=PROBE_C, max_iter=1000)], acts, labels, folds
    )


def probe_words(texts: Sequence[str], labels: Sequence[str], folds: Sequence[Fold]) -> Scores:
    """Scores of logistic regression on TF-IDF weights of the words, without any model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(sublinear_tf=True)
    inputs = np.asarray(texts, dtype=object)
    return _score([words, LogisticRegression(C=WORDS_C, max_iter=1000)], inputs, labels, folds)


def _score(
    steps: Sequence[Any], inputs: Array, labels: Sequence[str], folds: Sequence[Fold]
) -> Scores:
    from sklearn.pipeline import make_pipeline
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    classifier, names = make_pipeline(*steps), np.asarray(labels)
    per_fold = []
    # For matrices this small, BLAS threads on two busy cores made the fits take 40 s, not 0.7 s.
    with threadpool_limits(1):
        for train, test in folds:
            predicted = classifier.fit(inputs[train], names[train]).predict(inputs[test])
            per_fold.append(balanced_accuracy(names[test], predicted))
    return Scores(tuple(per_fold))


def balanced_accuracy(labels: Array, predicted: Array) -> float:
    """The share of each class that was found, averaged over the classes in `labels`."""
    found = [np.mean(predicted[labels == name] == name) for name in np.unique(labels)]
    return float(np.mean(found))
