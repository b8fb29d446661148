"""The table of site aliases is what the program finds: a sample of its rows, and its counts."""

from __future__ import annotations

import json
import random
import re
import warnings

import pytest

from fastcap.huggingface.verdicts import TABLE, VERIFIED
from tests import zoo

N_SAMPLED, SEED = 8, 0


def rows_of_page() -> dict[str, str]:
    """The rows by class, as they are in the page."""
    found = re.finditer(r"^\| (\w+) \|.*\|$", zoo.PAGE.read_text(), re.MULTILINE)
    return {line[1]: line[0] for line in found if line[1] not in ("alias", "class")}


def sampled() -> list[str]:
    """Classes with a verdict on every alias, which are therefore built and run in the test."""
    ran = [name for name, line in rows_of_page().items() if line.count("verified") > 1]
    return random.Random(SEED).sample(ran, min(N_SAMPLED, len(ran)))


def is_of_this_release() -> bool:
    transformers = pytest.importorskip("transformers")
    version: str = json.loads(TABLE.read_text())["transformers"]
    return version == str(transformers.__version__)


@pytest.mark.parametrize("name", sampled())
def test_a_row_is_what_the_class_does(name: str) -> None:
    if not is_of_this_release():
        pytest.skip("the table is of another release of transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = zoo.look(name, zoo.classes()[name])
    assert zoo.row(name, result) == rows_of_page()[name]
    table = json.loads(TABLE.read_text())["blocks"]
    for key, kinds in result.found.items():
        for kind, insides in kinds.items():
            assert insides.keys() <= table[key][kind].keys()


def test_the_counts_are_those_of_the_rows() -> None:
    text = zoo.PAGE.read_text()
    for line in zoo.counts(rows_of_page().values()):
        if not line.startswith("transformers") or is_of_this_release():
            assert line in text


def test_the_page_has_every_class_once() -> None:
    if is_of_this_release():
        assert list(rows_of_page()) == list(zoo.classes())


def test_what_runs_consult_is_the_table_of_the_page() -> None:
    blocks = json.loads(TABLE.read_text())["blocks"]
    for kind in ("residual", "attention", "mlp"):
        assert any(
            verdict == VERIFIED
            for kinds in blocks.values()
            for verdict, _ in kinds.get(kind, {}).values()
        )
    for kinds in blocks.values():
        assert kinds.get("block") == kinds.get("residual")
