"""The report: which runs are one row, what the numbers are, and pages that strangers' texts cannot break."""

import json
import math
import re
import statistics
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vix.commands.report import PAPERS, main
from vix.commands.report.charts import MOST_CURVES, front, kind
from vix.commands.report.drawing import Axis, Frame, Labels
from vix.commands.report.papers import read_papers
from vix.commands.report.runs import Row, collect, group

EXPERIMENTS = PAPERS.parent


def write(folder: Path, *, name: str = "vip", top1: float | None = 0.9, seed: int = 0, **changes: Any) -> Path:
    """A run's folder as `fit` and `test` leave it."""
    folder.mkdir(parents=True)
    results = {
        "experiment": name,
        "finished": True,
        "best": {"epoch": 2, "val/top1": 0.8, "val/top5": 0.99},
        "last": {"epoch": 3, "val/top1": 0.7},
        "parameters": 1000,
        "flops": 2_000_000,
        "seed": seed,
        "settings": "aaaaaaaa",
        "overlays": ["digits"],
        "net": {"class_path": "vix.ViP", "init_args": {"position": "rope"}},
        "data": {"class_path": "datamodules.Digits", "init_args": {"fraction": 1.0}},
        "wall_seconds": 10.0,
        "peak_memory_bytes": None,
        "written": "2026-01-01T00:00:00Z",
        "protocol": "True means.",
        **({} if top1 is None else {"test": {"test/top1": top1, "test/top5": 1.0, "test/confusion": [[1]]}}),
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.csv").write_text("epoch,step,val/top1\n1,5,0.5\n2,10,0.8\n3,15,0.7\n")
    return folder


def rows(folder: Path) -> list[Row]:
    return group(collect([folder])[0])


def test_a_row_is_the_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    scores = [0.9, 0.95, 0.97]
    for seed, top1 in enumerate(scores):
        write(tmp_path / str(seed), top1=top1, seed=seed)
    (row,) = rows(tmp_path)
    assert row.mean("test/top1") == pytest.approx(sum(scores) / 3)
    assert row.deviation("test/top1") == pytest.approx(statistics.stdev(scores))
    assert row.mean("best/top1") == pytest.approx(0.8)
    assert row.mean("last/top1") == pytest.approx(0.7)
    assert row.curve == pytest.approx({1: 0.5, 2: 0.8, 3: 0.7})


def test_runs_of_other_settings_are_never_averaged_and_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", settings="bbbbbbbb", seed=1)
    write(tmp_path / "c", settings="cccccccc", overlays=["digits", "published_recipe"], seed=2)
    assert {row.label for row in rows(tmp_path)} == {"vip [aaaaaaaa]", "vip [bbbbbbbb]", "vip + published_recipe"}


def test_a_seed_run_twice_counts_once_and_unfinished_runs_are_told(tmp_path: Path) -> None:
    write(tmp_path / "old", top1=0.1)
    write(tmp_path / "new", top1=0.9, written="2026-01-02T00:00:00Z")
    write(tmp_path / "dead", finished=False)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("[1")
    runs, left_out = collect([tmp_path])
    assert [run.scores["test/top1"] for run in runs] == [0.9]
    told = "\n".join(left_out)
    assert len(left_out) == 3
    assert re.search(r"broken.*not a run's results", told)
    assert re.search(r"dead: not finished", told)
    assert re.search(r"old: the same settings and seed were run again", told)


def test_the_report_is_three_files_that_depend_on_the_runs_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs" / "a")
    write(tmp_path / "runs" / "b", top1=0.96, seed=1)
    write(tmp_path / "runs" / "c", top1=None, name="vit", net={"class_path": "vix.ViT"})
    tenth = {"class_path": "datamodules.Digits", "init_args": {"fraction": 0.1}}
    write(tmp_path / "runs" / "d", data=tenth, settings="d")
    contents = []
    for out in ("one", "two"):
        assert main([str(tmp_path / "runs"), "--out", str(tmp_path / out), "--no-papers"]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {"report.md", "report.csv", "report.html"}
    text = contents[0]["report.md"].decode()
    assert "| vip | 2 | 93.00 ± 4.24 | 100.00 ± 0.00 | 80.00 ± 0.00 | 70.00 ± 0.00 | 1,000 | 2.0 | 10.0 s |" in text
    # what was not measured stays empty
    assert "| vit | 1 |  |  | 80.00 | 70.00 |" in text
    assert "memory" not in text
    assert "| system | 10% of train | 100% of train |" in text
    assert "True means." in text
    assert capsys.readouterr().out.startswith(text)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_tables_and_charts_and_loads_nothing(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a")
    write(tmp_path / "runs" / "b", name="vit", net={"class_path": "vix.ViT"}, flops=9e6, top1=0.99)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.loaded == []
    assert "http" not in page.replace("http-equiv", "")
    for title in ("Learning curves", "Accuracy against MFLOPs an image", "Accuracy against parameters"):
        assert f'aria-label="{title}"' in page
    assert tags.tags.count("table") == 3
    # no number that is none in any drawing
    assert not re.search(r"\b(nan|inf)\b", page)


def test_texts_of_strangers_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = "</title><script>alert(1)</script>|`x`[y](z)"
    write(tmp_path / "runs" / "a", name=evil, protocol=evil, data={"class_path": f"x.{evil}"})
    papers = tmp_path / "papers"
    papers.mkdir()
    paper = dict.fromkeys(("title", "source", "protocol"), evil)
    row = {"system": evil, "experiment": evil, "remark": evil}
    (papers / "a.yaml").write_text(json.dumps({**paper, "data": evil, "rows": [row]}))
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--papers", str(papers)]) == 0
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    assert "<script>" not in text
    assert all(line.replace("\\|", "").count("|") in (0, 9, 10) for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no finished run in ."),
        ([".", "--papers", "x"], "no finished"),
    ],
)
def test_nothing_to_report_is_told(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_published_numbers_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for content, told in {"a: [": "not YAML", "a: 1": "expected a mapping with exactly title"}.items():
        file.write_text(content)
        with pytest.raises(ValueError, match=told):
            read_papers(tmp_path)
    paper: dict[str, Any] = dict.fromkeys(("title", "source", "data", "protocol"), "x")
    for row, told in (
        ({"system": "x"}, "experiment"),
        ({"system": "x", "experiment": "x", "top1": 101}, "top1 must be"),
    ):
        file.write_text(json.dumps({**paper, "rows": [row]}))
        with pytest.raises(ValueError, match=told):
            read_papers(tmp_path)


def test_every_published_row_names_one_of_our_experiments_and_how_it_was_reached() -> None:
    papers = read_papers(PAPERS)
    assert {paper.data for paper in papers} == {"CIFAR10", "TinyImageNet"}
    for paper in papers:
        assert len(paper.protocol) > 100
        names = [row.experiment for row in paper.rows]
        assert len(names) == len(set(names))
        assert all((EXPERIMENTS / f"{name}.yaml").is_file() for name in names)
        assert all((row.top1 is None) == (row.epoch is None) for row in paper.rows)


def test_the_front_is_what_nothing_cheaper_or_as_cheap_beats() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (4.0, 0.9), (1.0, 0.5)]
    assert [points[place] for place in front(points)] == [(1.0, 0.5), (2.0, 0.7), (3.0, 0.9)]


@pytest.mark.parametrize("scale", ["linear", "log", "error"])
def test_an_axis_keeps_order_ends_and_round_ticks(scale: Any) -> None:
    axis = Axis(2.0, 50.0, 400.0, 10.0, scale)
    assert (axis(2.0), axis(50.0)) == pytest.approx((400.0, 10.0))
    places = [axis(value) for value in (2, 3, 10, 20, 49, 50)]
    assert places == sorted(places, reverse=True)
    ticks = axis.ticks()
    assert ticks == sorted(ticks)
    assert 2 <= len(ticks) <= 7
    assert all(2 <= tick <= 50 and math.isclose(tick, float(f"{tick:.1g}")) for tick in ticks)


def test_near_a_hundred_percent_half_the_error_has_as_much_room_as_half_of_it_again() -> None:
    axis = Frame().percentages([0.5, 0.998])
    assert axis.scale == "error"
    assert Frame().percentages([0.5, 0.8]).scale == "linear"
    # 10 and 5 points, 5 and 2.5: nearly the same step, though the scale goes on to an error of zero
    assert (axis(90) - axis(95)) / (axis(95) - axis(97.5)) == pytest.approx(1, abs=0.06)
    assert axis.ticks()[-1] > 99
    ticks = [axis(tick) for tick in axis.ticks()]
    assert min(one - other for one, other in pairwise(ticks)) > 15
    assert Frame().percentages([1.0, 1.0])(100.0) >= Frame().top


def test_names_never_cover_each_other_nor_a_point() -> None:
    frame, points = Frame(), [(500.0 + 9 * (n % 5), 200.0 + 7 * (n // 5)) for n in range(25)]
    labels = Labels(frame, points)
    drawn = [labels.beside(*point, "a_system", "#000") for point in points]
    boxes = labels._taken
    assert 0 < sum(map(bool, drawn)) < len(points)
    assert len(boxes) == len(points) + sum(map(bool, drawn))
    names = boxes[len(points) :]
    for place, (left, top, right, bottom) in enumerate(names):
        for a, b, c, d in boxes[: len(points)] + names[:place]:
            assert right < a or c < left or bottom < b or d < top


def test_names_of_curves_stand_below_each_other_inside_the_chart() -> None:
    frame = Frame(height=300)
    text = Labels(frame).column(400.0, [(250.0, f"n{place}", "#000") for place in range(9)])
    heights = [float(y) for y in re.findall(r'<text class="name" x="415.0" y="([\d.]+)"', text)]
    assert len(heights) == 9
    assert all(other - one > 12 for one, other in pairwise(heights))
    assert heights[-1] <= 300 - frame.bottom + 5


def test_many_curves_are_drawn_body_by_body(tmp_path: Path) -> None:
    for place in range(MOST_CURVES + 1):
        write(tmp_path / "runs" / str(place), name=f"vip{place}")
    write(tmp_path / "runs" / "cct", name="cct", net={"class_path": "vix.CCT"})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-papers"]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert [name in page for name in ("Learning curves, plain", "Learning curves, CCT", "Learning curves, CvT")] == [
        True,
        True,
        False,
    ]


def test_every_system_has_a_colour_and_a_mark_of_its_attention_and_body(tmp_path: Path) -> None:
    from vix.systems import SYSTEMS

    names = [system if isinstance(system, str) else system.__name__ for system in SYSTEMS]
    for name in names:
        write(tmp_path / name, name=name.lower(), net={"class_path": f"vix.{name}"})
    kinds = {row.first.net[0]: kind(row) for row in rows(tmp_path)}
    assert kinds["ViT"] == ("softmax", "plain")
    assert kinds["HybridViN"] == ("Nyström", "hybrid")
    assert kinds["HybridFNet"] == ("Fourier", "hybrid")
    assert kinds["MLPMixer"] == ("MLP", "plain")
    assert kinds["LeViP"] == ("Performer", "LeViT")
    assert kinds["CvT"] == ("softmax", "CvT")
    assert kinds["CCN"] == ("Nyström", "CCT")
    assert not [name for name, (mixing, _) in kinds.items() if mixing == "other"]
