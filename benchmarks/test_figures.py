"""The documents say what the result files say; and the program that writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import made_up
from benchmarks.checkout import PROJECT, RESULTS
from benchmarks.figures import catalogue, drawings, pages, peers, pictures, suite, text
from benchmarks.figures.catalogue import (
    ACCEPTANCE,
    BLOCKS,
    BRIEFS,
    IMPORTS,
    PEERS,
    PICTURES,
    SUITE,
    Place,
    write_block,
)
from benchmarks.figures.results import FigureError, Result, credit, newest, read
from benchmarks.peers.questions import TINY_SHAPE
from benchmarks.peers.report import TIME_BAR

main = import_module("benchmarks.figures.__main__")
IMAGES = "docs/images"


def test_documents_and_pictures_show_the_newest_results() -> None:
    """If this fails: python -m benchmarks.figures."""
    assert [*main.stale_pages(PROJECT), *main.stale_pictures(PROJECT)] == []


def test_every_block_stands_in_a_document() -> None:
    written = "\n".join((PROJECT / name).read_text() for name in main.PAGES)
    assert set(pages.BEGIN.findall(written)) == set(BLOCKS)


def test_lines_of_the_summary_lead_to_sections() -> None:
    page = (PROJECT / "docs/performance.md").read_text()
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in page.splitlines()}
    assert {heading for heading, _ in BRIEFS.values()} <= headings


# Result files


def put(folder: Path, kind: str, document: Mapping[str, Any], name: str | None = None) -> Result:
    """Write a document as its benchmark would, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or made_up.as_name(document, kind))
    path.write_text(json.dumps(document))
    return read(path)


def test_the_newest_file_is_that_with_the_latest_date_in_it(tmp_path: Path) -> None:
    document = made_up.imports_document()
    put(tmp_path, "imports", {**document, "date": "2026-11-25T10:00:00+00:00"}, "imports-a.json")
    put(tmp_path, "imports", {**document, "date": "2026-11-24T10:00:00+00:00"}, "imports-b.json")
    put(tmp_path, "imports", {**document, "date": "2026-11-24"}, "imports-c.json")
    found = newest(tmp_path, IMPORTS)
    assert found is not None
    assert found.path.name == "imports-a.json"


def test_a_suite_of_some_workloads_or_of_a_gpu_is_not_the_suite(tmp_path: Path) -> None:
    document = made_up.suite_document()
    put(tmp_path, "suite", document, "2026-11-23-suite-tiny-a-processor-2-cores.json")
    assert newest(tmp_path, SUITE) is None
    put(tmp_path, "suite", {**document, "device": "cuda"})
    assert newest(tmp_path, SUITE) is None
    put(tmp_path, "suite", document)
    assert newest(tmp_path, SUITE) is not None


def test_some_peers_or_the_model_of_the_tests_are_not_the_comparison(tmp_path: Path) -> None:
    document = made_up.peers_document()
    put(tmp_path, "peers", {**document, "model": asdict(TINY_SHAPE)})
    assert newest(tmp_path, PEERS) is None
    put(tmp_path, "peers", document)
    assert newest(tmp_path, PEERS) is not None
    for question in document["questions"]:
        question["comparisons"] = [c for c in question["comparisons"] if "sae-lens" not in c]
    put(tmp_path, "peers", document)
    assert newest(tmp_path, PEERS) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"imports-x.json is not JSON .*Measure it again, or remove it"),
        ('{"date": "2026-11-23", "machine": {}}', r"imports-x.json has no commit, torch, so"),
    ],
)
def test_a_file_that_cannot_be_traced_is_an_error(
    tmp_path: Path, content: str, problem: str
) -> None:
    (tmp_path / "imports-x.json").write_text(content)
    with pytest.raises(FigureError, match=problem):
        newest(tmp_path, IMPORTS)


def test_the_credit_names_file_date_machine_versions_commit_and_load(tmp_path: Path) -> None:
    result = put(tmp_path, "peers", made_up.peers_document())
    said = credit(result, "../results/")
    name = "peers-2026-11-23-a-processor-2-cores.json"
    assert said.startswith(
        f"From [{name}](../results/{name}): 2026-11-23; A Processor, 2 cores, 8 GB"
    )
    assert "commit c0ffeec0ffee; load average 0.20." in said
    assert "threads: 2" in said


def test_the_credit_says_what_makes_figures_less_certain(tmp_path: Path) -> None:
    document = {**made_up.peers_document(), "load": 2.5, "changed_paths": ["a.py"], "commit": None}
    said = credit(put(tmp_path, "peers", document), "")
    assert "commit unknown with 1 changed paths" in said
    assert "load average 2.50, so other work ran beside it" in said
    assert "Measured while other work ran." in catalogue.summary(Place(tmp_path, ""))


# Pages


def test_only_what_stands_between_markers_is_written() -> None:
    page = (
        "before\n<!-- figures: one -->\nold\n<!-- end -->\nbetween\n"
        "<!-- figures: two -->\n<!-- end -->\n"
    )
    written = pages.rewrite(page, str.upper)
    assert written == (
        "before\n<!-- figures: one -->\n\nONE\n\n<!-- end -->\nbetween\n"
        "<!-- figures: two -->\n\nTWO\n\n<!-- end -->\n"
    )
    assert pages.rewrite(written, str.upper) == written


@pytest.mark.parametrize("rest", ["", "<!-- figures: two -->\n<!-- end -->\n"])
def test_a_block_without_an_end_is_an_error(rest: str) -> None:
    with pytest.raises(FigureError, match="Block 'one' has no '<!-- end -->'"):
        pages.rewrite(f"<!-- figures: one -->\ntext\n{rest}", str.upper)


def test_a_block_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FigureError, match="There is no block 'speed'; there are summary, "):
        write_block(Place(tmp_path, ""), "speed")


@pytest.mark.parametrize("name", sorted(set(BLOCKS) - {"summary", "gaps"}))
def test_what_was_not_measured_says_how_to(tmp_path: Path, name: str) -> None:
    assert write_block(Place(tmp_path, ""), name).startswith("Not measured yet: `")


def test_kinds_without_figures_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "suite", made_up.suite_document())
    listed = catalogue.gaps(Place(tmp_path, ""))
    assert "make bench-peers" in listed
    assert "benchmarks.suite" not in listed
    assert listed.count("\n* ") == len(BRIEFS) - 1


# Text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.8, 0.99, "a takes less time than b"),
        (1.01, 1.2, "a takes more time than b"),
        (0.9, 1.1, "no difference between a and b is shown: the interval includes 1"),
    ],
)
def test_a_difference_is_said_only_where_the_interval_shows_one(
    low: float, high: float, said: str
) -> None:
    assert text.comparison({"mean": 1.0, "low": low, "high": high}, "a", "b") == said


# Blocks


def test_the_suite_shows_every_way_beside_hookless_hook_and_floor(tmp_path: Path) -> None:
    document = made_up.suite_document()
    page = suite.block(put(tmp_path, "suite", document))
    for workload, fields in document["workloads"].items():
        for way in fields["secs"]:
            assert f"\n| {workload} " in page
            assert f"| {way} " in page
    rows = [line for line in page.splitlines() if line.startswith("| gpt2-all-sites ")]
    [fastcap] = [row for row in rows if "| fastcap  " in row]
    assert "1.050 [1.021, 1.080]" in fastcap
    assert "forward + copy into rested memory" in fastcap
    assert "every value of every way equalled the oracle's" in page


def test_the_suite_counts_verdicts_and_says_what_differs(tmp_path: Path) -> None:
    document = made_up.suite_document(fastcap=1.5)
    document["workloads"]["tiny-last"]["mismatches"]["fastcap store"] = 3
    said = suite.brief(put(tmp_path, "suite", document))
    assert "fastcap takes less time than the plain hook in 0, more in 14, and in 0" in said
    assert "values DIFFER from the oracle's: fastcap store in tiny-last" in said
    assert "1.500 to 1.500 on the model of GPT-2's size and 3.000 to 3.000 on the small" in said


def test_bars_that_are_met_are_said_so(tmp_path: Path) -> None:
    page = peers.block(put(tmp_path, "peers", made_up.peers_document()))
    assert "is met in 9 of 9 comparisons" in page
    assert "in 7 of 7. Every bar is met." in page
    assert "missed" not in page
    assert "fastcap in 4 of 4, nnsight in 3 of 3, TransformerLens in 0 of 3, SAELens in 3" in page
    assert "25.0 % differ, by 1.0e-06 at most" in page
    assert "TransformerLens, beside the oracle on a model with eager attention: 0.1 %" in page
    assert "nnsight is not in this table: nnsight writes no files" in page
    assert "nnsight 0.8.1" in page


def test_bars_that_are_missed_are_said_as_the_comparison_said_them(tmp_path: Path) -> None:
    document = made_up.peers_document(fastcap_secs=1.3, fastcap_bytes=200_000_000)
    found = put(tmp_path, "peers", document)
    page, short = peers.block(found), peers.readme_block(found)
    broken = document["headline"]["broken_bars"]
    assert broken
    assert all(f"\n* {problem}" in page and f"\n* {problem}" in short for problem in broken)
    # Once each in the tables: the program and the comparison judge alike.
    assert page.count("**missed**") == len({bar.partition(" (")[0] for bar in broken})
    assert str(TIME_BAR) in page


def test_memory_is_held_against_the_better_way_to_collect(tmp_path: Path) -> None:
    document = made_up.peers_document(fastcap_bytes=170_000_000)
    residual = peers.questions(put(tmp_path, "peers", document))[0]
    assert residual.added("nnsight") == {"rows": 160_000_000, "lists": 235_000_000}
    assert residual.meets_memory_bar("nnsight") is False
    assert residual.meets_memory_bar("sae-lens") is True


def test_importing_is_told_in_milliseconds(tmp_path: Path) -> None:
    put(tmp_path, "imports", made_up.imports_document())
    said = write_block(Place(tmp_path, ""), "imports")
    assert "`import fastcap` takes 20.5 ms after `import torch`, which takes 900 ms" in said


def test_a_run_without_memory_figures_says_so(tmp_path: Path) -> None:
    found = newest(PROJECT / RESULTS, ACCEPTANCE)
    assert found is not None
    put(tmp_path, "", {**found.content, "peak_over_result": {}}, "x-acceptance-y.json")
    assert "not measured" in write_block(Place(tmp_path, ""), "acceptance")
    assert "results, the hook's" not in catalogue.summary(Place(tmp_path, ""))


# The program


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Documents with every block, and some results."""
    (tmp_path / IMAGES).mkdir(parents=True)
    blocks = [f"<!-- figures: {name} -->\n<!-- end -->\n" for name in BLOCKS]
    for name in main.PAGES:
        (tmp_path / name).write_text("Some text.\n\n" + "\n".join(blocks))
    put(tmp_path / RESULTS, "imports", made_up.imports_document())
    put(tmp_path / RESULTS, "peers", made_up.peers_document())
    return tmp_path


@pytest.fixture
def stamps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not drawn, which takes seconds."""
    monkeypatch.setattr(
        pictures, "save", lambda figure, result, path: path.write_text(result.stamp)
    )


def test_a_run_writes_pages_and_pictures_until_nothing_is_stale(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main.main(["--check"], project) == main.STALE
    assert "docs/performance.md is stale: python -m benchmarks.figures" in capsys.readouterr().out
    assert main.main([], project) == 0
    assert f"{IMAGES}/peers.svg written" in capsys.readouterr().out
    assert main.main(["--check"], project) == 0
    assert "20.5 ms" in (project / "README.md").read_text()
    assert "(benchmarks/results/imports" in (project / "README.md").read_text()
    assert "(../benchmarks/results/imports" in (project / "docs/performance.md").read_text()


@pytest.mark.usefixtures("stamps_only")
def test_other_figures_make_pages_and_pictures_stale(project: Path) -> None:
    pytest.importorskip("matplotlib")
    main.main([], project)
    put(project / RESULTS, "peers", made_up.peers_document(fastcap_secs=1.01))
    assert list(main.stale_pages(project)) == list(main.PAGES)
    assert list(main.stale_pictures(project)) == [f"{IMAGES}/peers.svg"]


@pytest.mark.usefixtures("stamps_only")
def test_a_picture_without_figures_is_removed(project: Path) -> None:
    pytest.importorskip("matplotlib")
    main.main([], project)
    for path in (project / RESULTS).glob("peers-*"):
        path.unlink()
    assert list(main.stale_pictures(project)) == [f"{IMAGES}/peers.svg"]
    main.main([], project)
    assert not list((project / IMAGES).iterdir())


def test_a_broken_file_is_told_and_nothing_is_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / RESULTS / "imports-x.json").write_text("{")
    before = (project / "README.md").read_text()
    assert main.main([], project) == main.CANNOT_WRITE
    assert "imports-x.json is not JSON" in capsys.readouterr().err
    assert (project / "README.md").read_text() == before


# Pictures


def results(folder: Path) -> Iterator[tuple[Callable[[Result], Any], Result]]:
    yield drawings.overhead, put(folder, "suite", made_up.suite_document())
    yield drawings.beside_peers, put(folder, "peers", made_up.peers_document())
    found = newest(PROJECT / RESULTS, PICTURES["scaling.svg"][0])
    assert found is not None
    yield drawings.growth, found


def test_every_axis_says_what_it_is_and_no_label_covers_another(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for draw, result in results(tmp_path):
        figure = draw(result)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        for axes in figure.axes:
            if not axes.axison:
                continue
            assert axes.get_xlabel()
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label for label in axis.get_ticklabels() if label.get_text()]
                boxes = [label.get_window_extent() for label in labels]
                for index, box in enumerate(boxes):
                    assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_the_same_figures_give_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = put(tmp_path, "peers", made_up.peers_document())
    paths = [tmp_path / f"{number}.svg" for number in range(2)]
    for path in paths:
        pictures.save(drawings.beside_peers(result), result, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert pictures.is_current(paths[0], result)


@pytest.mark.parametrize("ends", [(0.9, 1.1), (0.98, 1.04), (0.5, 40.0), (1.0, 1.6)])
def test_ticks_leave_room_and_have_1_among_them(ends: tuple[float, float]) -> None:
    ticks = pictures.choose_ticks(*ends)
    assert 1 in ticks
    assert 3 <= len(ticks) <= 1 / pictures.TICK_ROOM + 1
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)


def test_one_wide_interval_does_not_hide_the_others() -> None:
    ratios = [{"mean": 1.1, "low": 0.01, "high": 200.0}, {"mean": 1.2, "low": 1.1, "high": 1.3}]
    low, high = pictures.limits(ratios)
    assert 0.5 < low < 1.0
    assert 1.3 < high < 2.0
