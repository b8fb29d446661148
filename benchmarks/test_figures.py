"""The documents say what the result files say; and the program that writes them.

Documents are made of the committed results, with some figures changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checkout import PROJECT, RESULTS
from benchmarks.figures import catalogue, drawings, gpu, peers, suite, text
from benchmarks.figures.catalogue import BLOCKS, IN_SUMMARY, KINDS, Place, write_block
from benchmarks.figures.results import FigureError, Kind, Result, credit, newest, read
from benchmarks.peers.questions import TINY_SHAPE
from benchmarks.peers.ways import NNSIGHT
from fastcap.bench import Ratio

main = import_module("benchmarks.figures.__main__")
IMAGES = "docs/images"


def committed(kind: Kind) -> dict[str, Any]:
    found = newest(PROJECT / RESULTS, kind)
    assert found is not None
    content: dict[str, Any] = json.loads(json.dumps(found.content))
    return content


def put(folder: Path, content: Mapping[str, Any], name: str | None = None) -> Result:
    """Write a result as its benchmark would, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{content['kind']}-{content['date'][:10]}-somewhere.json")
    path.write_text(json.dumps(content))
    return read(path)


def test_documents_and_pictures_show_the_newest_results() -> None:
    """If this fails: python -m benchmarks.figures."""
    assert [*main.stale_pages(PROJECT), *main.stale_pictures(PROJECT)] == []


def test_every_block_stands_in_a_document_and_summaries_lead_to_sections() -> None:
    written = "\n".join((PROJECT / name).read_text() for name in main.PAGES)
    assert set(main.BEGIN.findall(written)) == set(BLOCKS)
    page = (PROJECT / "docs/performance.md").read_text()
    headings = {line.lstrip("# ").lower().replace(" ", "-") for line in page.splitlines()}
    assert {kind.heading for kind in IN_SUMMARY} <= headings


@pytest.mark.parametrize("kind", KINDS[2:], ids=lambda kind: kind.title)
def test_a_program_prints_what_the_documents_show(kind: Kind) -> None:
    content = committed(kind)
    shown = catalogue.shown(content["kind"], Result(Path(), content))
    assert shown in (PROJECT / "docs/performance.md").read_text()


# Result files


def test_the_newest_file_is_that_with_the_latest_date_in_it(tmp_path: Path) -> None:
    content = committed(catalogue.IMPORTS)
    for name, date in (("a", "2026-11-25T10:00:00+00:00"), ("b", "2026-11-24T10:00:00+00:00")):
        put(tmp_path, {**content, "date": date}, f"imports-{name}.json")
    put(tmp_path, {**content, "date": "2026-11-24"}, "imports-c.json")
    found = newest(tmp_path, catalogue.IMPORTS)
    assert found is not None
    assert found.path.name == "imports-a.json"


def test_a_part_of_a_benchmark_is_not_the_benchmark(tmp_path: Path) -> None:
    content = committed(catalogue.SUITE)
    for change in ({"only": ["tiny"]}, {"device": "cuda"}):
        put(tmp_path, {**content, **change})
        assert newest(tmp_path, catalogue.SUITE) is None
    put(tmp_path, content)
    assert newest(tmp_path, catalogue.SUITE) is not None
    assert newest(tmp_path, catalogue.ACCEPTANCE) is None
    content = committed(catalogue.PEERS)
    put(tmp_path, {**content, "model": asdict(TINY_SHAPE)})
    assert newest(tmp_path, catalogue.PEERS) is None
    for question in content["questions"]:
        question["comparisons"] = [c for c in question["comparisons"] if "sae-lens" not in c]
    put(tmp_path, content)
    assert newest(tmp_path, catalogue.PEERS) is None


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
        newest(tmp_path, catalogue.IMPORTS)


def test_the_credit_says_where_figures_are_from_and_what_makes_them_less_certain(
    tmp_path: Path,
) -> None:
    content = committed(catalogue.PEERS)
    said = credit(put(tmp_path, content, "peers-a.json"), "../results/")
    assert said.startswith("From [peers-a.json](../results/peers-a.json): 2026-11-23; AMD EPYC")
    assert f"commit {content['commit'][:12]}; load average 1.58." in said
    content |= {"load": 2.5, "changed_paths": ["a.py"], "commit": None}
    said = credit(put(tmp_path, content, "peers-a.json"), "")
    assert "commit unknown with 1 changed paths" in said
    assert "load average 2.50, so other work ran beside it" in said
    assert "Measured while other work ran." in catalogue.summary(Place(tmp_path, ""))


# Blocks


def test_only_what_stands_between_markers_is_written() -> None:
    page = (
        "before\n<!-- figures: one -->\nold\n<!-- end -->\nbetween\n"
        "<!-- figures: two -->\n<!-- end -->\n"
    )
    written = main.rewrite(page, str.upper)
    assert written == (
        "before\n<!-- figures: one -->\n\nONE\n\n<!-- end -->\nbetween\n"
        "<!-- figures: two -->\n\nTWO\n\n<!-- end -->\n"
    )
    assert main.rewrite(written, str.upper) == written
    for rest in ("", "<!-- figures: two -->\n<!-- end -->\n"):
        with pytest.raises(FigureError, match="Block 'one' has no '<!-- end -->'"):
            main.rewrite(f"<!-- figures: one -->\ntext\n{rest}", str.upper)
    with pytest.raises(FigureError, match="There is no block 'speed'; there are summary, "):
        write_block(Place(Path(), ""), "speed")


def test_what_was_not_measured_says_how_to(tmp_path: Path) -> None:
    for name in set(BLOCKS) - {"summary"}:
        assert write_block(Place(tmp_path, ""), name).startswith("Not measured yet: `")
    put(tmp_path, committed(catalogue.SUITE))
    summary = write_block(Place(tmp_path, ""), "summary")
    assert "Not measured yet: `make bench-peers`" in summary
    assert summary.count("Not measured yet") == len(IN_SUMMARY) - 1


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
    assert text.comparison(Ratio(1.0, low, high, ()), "a", "b") == said


def test_the_suite_shows_ratios_floors_and_what_differs(tmp_path: Path) -> None:
    content = committed(catalogue.SUITE)
    for fields in content["workloads"].values():
        base, n_rounds = fields["secs"]["baseline"], len(fields["secs"]["baseline"])
        fields["secs"] |= {"hook": base, "fastcap": [1.5 * secs for secs in base]}
        assert n_rounds == content["rounds"]
    of_tiny = content["workloads"]["tiny-last"]
    of_tiny["mismatches"]["fastcap store"] = 3
    result = put(tmp_path, content)
    said, page = suite.brief(result), suite.block(result)
    n_workloads = len(content["workloads"])
    assert f"less time than the synchronous hook in 0, more in {n_workloads}, and in 0" in said
    assert "values DIFFER from the oracle's: fastcap store in tiny-last" in said
    for workload, fields in content["workloads"].items():
        assert all(f"| {way} " in page and f"\n| {workload} " in page for way in fields["secs"])
    [row] = [line for line in page.splitlines() if line.startswith("| tiny-last ")][:1]
    assert "1.500 [1.500, 1.500]" in row
    [each] = [each for each in suite.workloads(result) if each.name == "tiny-last"]
    floors = content["floors"]
    of_copy = of_tiny["captured_bytes"] / 1e9 / floors["cold_gb_per_sec"]
    base_secs = each.overhead.median_secs("baseline")
    assert each.floor().secs == pytest.approx(base_secs + of_copy)


def test_a_goal_on_a_gpu_is_judged_by_its_interval(tmp_path: Path) -> None:
    content = committed(catalogue.GPU)
    of = "llama, all positions: slots  "
    [entry] = [each for each in content["entries"] if each["title"] == of.strip()]
    [steady] = [each for each in entry["figures"] if each["goal"]]
    for interval, verdict in (
        ([1.00, 1.02], "met"),
        ([1.01, 1.03], "not shown"),
        ([1.03, None], "**missed**"),
    ):
        steady["interval"] = interval
        page = gpu.goals(put(tmp_path, content))
        [row] = [line for line in page.splitlines() if line.startswith("| compute") and of in line]
        assert row.endswith(f"| {verdict.ljust(10)} |")


def test_a_value_that_differs_on_a_gpu_is_no_figure(tmp_path: Path) -> None:
    content = committed(catalogue.GPU_PEERS)
    [wrong] = [each for each in content["entries"][0]["figures"] if each["name"] == gpu.WRONG]
    wrong["value"] = 1
    with pytest.raises(AssertionError, match="llama, all positions: hook"):
        gpu.peers(put(tmp_path, content))


def test_bars_are_judged_by_intervals_and_by_the_better_way_to_collect(tmp_path: Path) -> None:
    content = committed(catalogue.PEERS)
    residual = content["questions"][0]
    of_nnsight = residual["comparisons"][0]
    assert NNSIGHT in of_nnsight
    of_nnsight["fastcap"] = [1.1 * secs for secs in of_nnsight[NNSIGHT]]
    added = {
        "baseline": {"rows": 0},
        "fastcap": {"rows": 170},
        "nnsight": {"rows": 160, "lists": 235},
        "transformer-lens": {"rows": 171},
        "sae-lens": {"rows": 200, "lists": 235},
    }
    for way, of_way in added.items():
        for collector, megabytes in of_way.items():
            peak = {"host_bytes": megabytes * 10**6, "before_bytes": 0}
            residual["peaks"][way][collector] = peak
    del residual["peaks"]["transformer-lens"]["lists"]
    residual["values"]["fastcap"]["n_different"] = 1
    result = put(tmp_path, content)
    page = peers.block(result)
    assert "is met in 8 of 9 comparisons" in page
    assert "in 6 of 7. Missed:" in page
    missed = list(peers.questions(result)[0].missed())
    assert len(missed) == 3
    assert "residual: fastcap's values are not the oracle's: 0.0 % differ" in missed[0]
    assert missed[1].endswith("times as long as nnsight")
    assert missed[2].endswith("adds 170 MB to the peak, nnsight rows 160 MB, lists 235 MB")
    assert all(f"\n* {each}" in page and f"\n* {each}" in peers.in_short(result) for each in missed)
    assert page.count("**missed**") == 2


def test_a_run_without_memory_figures_says_so(tmp_path: Path) -> None:
    content = committed(catalogue.ACCEPTANCE)
    content["workloads"]["acceptance"]["peak_added_bytes"] = {}
    put(tmp_path, content)
    assert "not measured" in write_block(Place(tmp_path, ""), "one large result")
    assert "results to the peak" not in catalogue.summary(Place(tmp_path, ""))


# The program


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Documents with every block, and some results."""
    (tmp_path / IMAGES).mkdir(parents=True)
    blocks = [f"<!-- figures: {name} -->\n<!-- end -->\n" for name in BLOCKS]
    for name in main.PAGES:
        (tmp_path / name).write_text("Some text.\n\n" + "\n".join(blocks))
    for kind in (catalogue.IMPORTS, catalogue.PEERS):
        put(tmp_path / RESULTS, committed(kind))
    return tmp_path


def test_a_run_writes_pages_and_pictures_until_nothing_is_stale(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main.main(["--check"], project) == main.STALE
    assert "docs/performance.md is stale: python -m benchmarks.figures" in capsys.readouterr().out
    assert main.main([], project) == 0
    assert f"{IMAGES}/peers.svg written" in capsys.readouterr().out
    assert main.main(["--check"], project) == 0
    assert "35.8 ms" in (project / "README.md").read_text()
    assert "(../benchmarks/results/imports" in (project / "docs/performance.md").read_text()
    monkeypatch.setattr(drawings, "save", lambda figure, result, path: None)
    content = committed(catalogue.PEERS)
    content["questions"][0]["comparisons"][0]["nnsight"][0] = 0.5
    put(project / RESULTS, content)
    assert list(main.stale_pages(project)) == list(main.PAGES)
    assert list(main.stale_pictures(project)) == [f"{IMAGES}/peers.svg"]
    for path in (project / RESULTS).glob("peers-*"):
        path.unlink()
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


def drawn() -> Iterator[tuple[Callable[[Result], Any], Result]]:
    for kind, draw in catalogue.PICTURES.values():
        yield draw, Result(Path("x.json"), committed(kind))


def test_every_axis_says_what_it_is_and_no_label_covers_another() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for draw, result in drawn():
        figure = draw(result)
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        for axes in filter(lambda axes: axes.axison, figure.axes):
            assert axes.get_xlabel()
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label for label in axis.get_ticklabels() if label.get_text()]
                boxes = [label.get_window_extent() for label in labels]
                for index, box in enumerate(boxes):
                    assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_one_wide_interval_does_not_hide_the_others() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    ratios = [Ratio(1.1, 0.01, 200.0, ()), Ratio(1.2, 1.1, 1.3, ())]
    drawings.ratio_axis(axes, ratios)
    low, high = axes.get_xlim()
    assert 0.5 < low < 1.0
    assert 1.3 < high < 2.0
