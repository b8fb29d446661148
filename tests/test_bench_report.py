"""What a report says: text, JSON, pictures without overlaps, and a page that needs nothing else."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastcap.bench import Floors, Timeline, make_case, timing
from fastcap.bench import report as reports
from fastcap.bench.page import render, write
from fastcap.bench.report import Report, as_json, as_text, choose_passes, make_report
from fastcap.errors import SaveError
from tests.support.reports import made_overhead, made_report, made_timeline

charts = pytest.importorskip("fastcap.bench.charts", reason="needs matplotlib")
pytest.importorskip("matplotlib", reason="draws pictures")

ON_CPU = {"device": "cpu", **{k: v for k, v in made_report().settings.items() if k != "device"}}


def cpu_report() -> Report:
    """As a CPU model's: no link, one stream."""
    model = nn.Sequential(nn.Linear(8, 8))
    case = make_case(model, [torch.ones(2, 8)], ["0"])
    from fastcap.bench import record_timeline

    return made_report(
        settings=ON_CPU,
        floors=Floors(8.0, 4.0, 2.0),
        timeline=record_timeline(case)[0],
        points=(made_overhead(1),),
    )


def wild_report() -> Report:
    """Ratios far apart, intervals wider than the picture, one millionth of a floor."""
    points = (
        made_overhead(1, 0.6, 0.9, captured_bytes=80),
        made_overhead(4, 40.0, 1.3, captured_bytes=3000),
        made_overhead(8, 300.0, 1.3, captured_bytes=12_000),
        made_overhead(16, 900.0, 1.3, captured_bytes=24_000),
    )
    return made_report(points=points, timeline=made_timeline(200))


REPORTS: dict[str, Callable[[], Report]] = {
    "accelerator": made_report,
    "cpu": cpu_report,
    "wild": wild_report,
}
FIGURES: dict[str, Callable[[Report], Any]] = {
    "overhead": charts.overhead_figure,
    "floors": charts.floors_figure,
    "timeline": lambda report: charts.timeline_figure(report.timeline),
}


def shown_texts(figure: Any) -> dict[str, Any]:
    """Every text that is drawn, with its box in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    (axes,) = figure.axes
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    limits = {id(t): True for t in ticks}
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = {}
    for number, text in enumerate(found):
        box = text.get_window_extent()
        is_drawn = figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1
        if id(text) not in limits or is_drawn:
            boxes[f"{number}: {text.get_text()!r}"] = box
    return boxes


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("kind", REPORTS)
def test_no_two_labels_overlap_and_none_leaves_the_picture(kind: str, figure: str) -> None:
    drawn = FIGURES[figure](REPORTS[kind]())
    boxes = shown_texts(drawn)
    assert boxes
    for (one, box), (other, box_of_other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(box_of_other), f"{one} overlaps {other}"
    for name, box in boxes.items():
        assert box.x0 >= -1, name
        assert box.x1 <= drawn.bbox.x1 + 1, name


@pytest.mark.parametrize("figure", FIGURES)
def test_every_axis_of_numbers_has_a_unit(figure: str) -> None:
    (axes,) = FIGURES[figure](made_report()).axes
    units = ("bytes", "%", "ms", "baseline = 1")
    labels = [label for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    assert labels
    assert all(any(unit in label for unit in units) for label in labels)


@pytest.mark.parametrize("figure", FIGURES)
def test_pictures_have_no_colour(figure: str) -> None:
    svg = charts.as_svg(FIGURES[figure](made_report()), figure)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
    assert colours
    assert all(c[1:3] == c[3:5] == c[5:7] for c in colours), colours


def test_the_page_is_one_file_that_fetches_nothing() -> None:
    page = render(made_report())
    for fetching in ("<script", "<link", "<img", "src=", "@import", "url(http"):
        assert fetching not in page
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names


def test_pictures_are_well_formed_and_their_ids_do_not_clash() -> None:
    page = render(made_report())
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 3
    ids: list[str] = []
    for picture in pictures:
        own = {e.attrib["id"] for e in ET.fromstring(picture).iter() if "id" in e.attrib}
        used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", picture))
        assert used <= own
        ids += own
    assert len(ids) == len(set(ids))


def test_names_from_the_command_line_are_escaped() -> None:
    page = render(made_report(model="<script>alert(1)</script>"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_answers_first() -> None:
    page = render(made_report())
    first = page.index("<p>With 16 sites captured, a run takes 1.050 [1.050, 1.050] times as long")
    assert first < page.index("<svg")
    assert "Every value equalled the oracle&#x27;s." in page


def test_mismatches_show_everywhere() -> None:
    bad = made_overhead(
        16,
        n_mismatches={"hook": 5, "fastcap": 0},
        problems={"hook": ("layers.0.mlp: 8 bytes differ",), "fastcap": ()},
    )
    report = made_report(points=(bad,))
    assert not report.is_equal
    assert "hook DIFFERS with 16 sites captured: layers.0.mlp: 8 bytes differ" in as_text(report)
    assert json.loads(as_json(report))["points"][0]["mismatches"] == {"hook": 5, "fastcap": 0}
    assert "All but 5 values equalled" in render(report)


def test_text_and_json_have_the_same_figures() -> None:
    report = made_report()
    text, content = as_text(report), json.loads(as_json(report))
    assert "| 16    | 16 MB    | fastcap  | 115.500     | 1.050 [1.050, 1.050] |" in text
    assert content["points"][2]["ratios_to_baseline"]["fastcap"]["mean"] == pytest.approx(1.05)
    assert content["floors"]["link_gb_per_sec"] == 50.0
    assert "link 50.00 GB/s" in text
    assert content["equal"] is True
    assert "of the copies' time passed while the model computed" in text


def test_shares_are_of_fastcaps_time() -> None:
    shares = made_report().floor_shares  # 160 MB in 1.155 s
    assert shares["forward"] == pytest.approx(1.1 / 1.155)
    assert shares["link"] == pytest.approx(0.16 / 50 / 1.155)
    assert shares["write to disk"] == pytest.approx(0.16 / 1.5 / 1.155)


def test_a_page_that_cannot_be_written_says_where_and_why(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(SaveError, match=r"Cannot write .*report\.html: ") as caught:
        write(made_report(), in_the_way / "report.html")
    assert caught.value.errno is not None


def test_a_real_report_measures_more_and_more_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    case = make_case(model, [torch.ones(4, 8)], "**")
    report = make_report("m:model", case, rounds=2, passes=3, floor_bytes=1 << 16)
    assert [len(point.sites) for point in report.points] == [1, 6]
    assert report.whole.n_passes == 3
    assert report.is_equal
    assert report.settings["samples_per_run"] == 12
    assert report.statistics.captures == 6 * (1 + reports.N_SHOWN_PASSES)
    assert isinstance(report.timeline, Timeline)


def test_the_number_of_passes_is_bounded_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(nn.Sequential(nn.Identity()), [torch.ones(4, 8)], ["0"])  # 128 bytes a pass
    assert choose_passes(case) == reports.MOST_PASSES
    monkeypatch.setattr(reports, "available_bytes", lambda: 8 * 128 * 10)
    assert choose_passes(case) == 10
    monkeypatch.setattr(reports, "available_bytes", lambda: 0)
    assert choose_passes(case) == 2


def test_a_run_without_load_average_says_nothing_of_it() -> None:
    assert "load before" not in as_text(replace(made_report(), load=None))


@pytest.mark.parametrize(
    "share", [0.05, 0.6, 0.72, 0.8, 0.9, 0.999, 1.0, 1.05, 1.13, 1.4, 3.0, 9.0]
)
def test_labels_of_bars_stay_clear_of_the_line_at_100_percent(share: float) -> None:
    secs = {"baseline": (0.3,) * 3, "hook": (1.0,) * 3, "fastcap": (0.3 / share,) * 3}
    report = made_report(
        points=(made_overhead(1, secs=secs, captured_bytes=30_000_000),),
        floors=Floors(8.0, 0.03 / 0.07, 2.0, disk_gb_per_sec=0.1),
    )
    figure = charts.floors_figure(report)
    shown_texts(figure)
    (axes,) = figure.axes
    line = axes.transData.transform((100, 0))[0]
    for text in axes.texts:
        box = text.get_window_extent()
        assert not box.x0 <= line <= box.x1, text.get_text()
        assert axes.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text.get_text()


def test_one_large_site_among_small_ones_leaves_every_point_in_the_picture() -> None:
    bytes_by_sites = {1: 32_800, 4: 256, 10: 33_300}  # the site in the middle is nearly all
    report = made_report(
        points=tuple(made_overhead(n, captured_bytes=10 * b) for n, b in bytes_by_sites.items())
    )
    figure = charts.overhead_figure(report)
    boxes = shown_texts(figure)
    for (one, box), (other, box_of_other) in itertools.combinations(boxes.items(), 2):
        assert not box.overlaps(box_of_other), f"{one} overlaps {other}"
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    for line in axes.lines:
        xs = list(line.get_xdata())
        assert xs == [0, 1] or low < min(xs) <= max(xs) < high
        assert xs == sorted(xs)


def test_pictures_keep_their_size_on_narrow_screens() -> None:
    page = render(made_report())
    assert "min-width: 40rem" in page
    assert page.count('<div class="wide"><svg') == 3


def test_a_disk_that_was_not_written_to_is_said_to_be_so() -> None:
    assert "This run wrote nothing to disk" in render(made_report())
    without = made_report(floors=Floors(8.0, 4.0, 2.0, None, 50.0))
    assert "wrote nothing to disk" not in render(without)


def test_a_compiled_model_is_remarked_on() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(8, 8)), backend="eager")
    case = make_case(model, [torch.ones(2, 8)], ["0"])  # type: ignore[arg-type]
    settings = {**ON_CPU, "compiled": reports.settings_of(case, 2, 2)["compiled"]}
    assert "Compiled graphs skip hooks" in as_text(made_report(settings=settings))
    assert "Compiled graphs" not in as_text(made_report())


def test_what_a_first_pass_costs_does_not_shorten_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("fastcap.bench.report.time.perf_counter", lambda: clock[0])

    class Compiling(nn.Module):
        """As `torch.compile`: what runs first without a hook takes long."""

        is_ready = False

        def forward(self, acts: torch.Tensor) -> torch.Tensor:
            if not self._forward_hooks:
                clock[0] += 0.0625 if self.is_ready else 60.0
                self.is_ready = True
            return acts

    case = make_case(nn.Sequential(Compiling()), [torch.ones(4, 8)], ["0"])
    assert choose_passes(case) == 8


def test_of_many_differences_the_text_has_a_few() -> None:
    problems = tuple(f"layers.{i}: 8 bytes differ" for i in range(200))
    bad = made_overhead(
        16, n_mismatches={"hook": 200, "fastcap": 0}, problems={"hook": problems, "fastcap": ()}
    )
    report = made_report(points=(bad,))
    assert "layers.2: 8 bytes differ; and 197 more, which --json has" in as_text(report)
    assert len(json.loads(as_json(report))["points"][0]["problems"]["hook"]) == 200


def test_a_disk_that_cannot_be_measured_is_found_before_the_rounds(tmp_path: Path) -> None:
    def forward(model: nn.Module, batch: torch.Tensor) -> None:
        raise AssertionError("this ran")

    case = make_case(nn.Sequential(nn.Identity()), [torch.ones(2, 8)], ["0"], forward=forward)
    with pytest.raises(SaveError, match="which measures its disk"):
        make_report("m", case, folder=tmp_path / "nowhere", floor_bytes=1 << 10)
