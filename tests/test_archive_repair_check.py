"""A journal that was damaged, and values that are compared before its archive is continued."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcap.archive.layout import JOURNAL
from fastcap.archive.reader import open_archive
from fastcap.archive.repair import repair
from fastcap.errors import ArchiveConfigError, FastcapWarning
from fastcap.extraction import run as run_module
from tests.support.archives import write
from tests.support.datasets import make_samples
from tests.support.extracting import extract
from tests.support.models import LanguageModel
from tests.test_archive_repair import damage, shards
from tests.test_extract_check import begin, rounded


@pytest.fixture(autouse=True)
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same fingerprint: only values tell."""
    monkeypatch.setattr(run_module, "describe_run", lambda *_, **__: {"is": "the same"})


@pytest.mark.parametrize("how", ["a bit of the first line", "only the first line"])
def test_where_nobody_knows_who_made_values_they_are_compared_within_rounding(
    how: str, tmp_path: Path
) -> None:
    root, data = tmp_path / "acts", make_samples(5)
    extract(LanguageModel(), data, root)
    damage(root, how)
    repair(root)
    assert extract(LanguageModel(), data, root).is_complete
    if how == "only the first line":
        with pytest.raises(ArchiveConfigError, match="as small as rounding"):
            extract(rounded(LanguageModel(), 1e-6), data, root)
    else:
        assert extract(rounded(LanguageModel(), 1e-6), data, root).is_complete
    with pytest.raises(ArchiveConfigError, match="'norm': "):
        extract(rounded(LanguageModel(), 0.1), data, root)


def test_who_went_on_and_what_was_compared_outlast_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data = tmp_path / "acts", make_samples(5)
    begin(LanguageModel(), root, samples=data)
    monkeypatch.setattr(run_module, "device_name", lambda device: "another")
    with pytest.warns(FastcapWarning, match="another set-up"):
        _, second = extract(LanguageModel(), data, root).writers
    path = second.directory / JOURNAL
    write(path, path.read_bytes()[:-1])
    assert len(repair(root)) == 1
    archive = open_archive(root)
    assert archive.is_complete
    assert archive.writers[1].journal.info == second.journal.info
    assert second.journal.info is not None
    assert second.journal.info.check["samples"] == [0, 3]
    assert second.journal.info.creator["device"] == "another"


def test_values_that_come_out_differently_are_refused_and_evidence_is_kept(tmp_path: Path) -> None:
    root, data = tmp_path / "acts", make_samples(8)
    begin(LanguageModel(), root, n_done=2, samples=data)
    before = shards(root)
    damage(root, "a bit of the last line")
    with (
        pytest.warns(FastcapWarning, match="kept, with .orphan"),
        pytest.raises(ArchiveConfigError, match="holds other values of samples 0 to 2"),
    ):
        extract(rounded(LanguageModel(), 0.1), data, root)
    assert len(repair(root)) == 1
    assert shards(root) == before
    assert extract(LanguageModel(), data, root).is_complete
