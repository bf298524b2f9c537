"""Tables inside a page: made from the runs it names, byte for byte, and nothing else of the page is touched."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

import main as entry
from tests.commands.test_report import write
from vix.commands.report import main

ROOT = Path(entry.__file__).parent
# The pages of this repository whose tables are made from committed runs.
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks" / "README.md"]
MARKED = [page for page in PAGES if page.is_file() and "\n<!-- report: " in page.read_text(encoding="utf-8")]
WORDS = "# Title\n\nWords with <!-- a comment -->.\n\n{}\n\nMore words, without end of line"
DEVICE = {"type": "cpu", "name": "A | B", "processes": 1, "threads": 2}


def block(what: str, body: str = "") -> str:
    return f"<!-- report: {what} -->\n{body}<!-- /report -->"


def runs(folder: Path) -> None:
    tenth = {"class_path": "datamodules.Digits", "init_args": {"fraction": 0.1}}
    for seed, top1 in enumerate((0.9, 0.96)):
        facts = {"device": DEVICE, "versions": {"torch": "2.15.0"}, "commit": f"{seed}" * 40, "changed": bool(seed)}
        write(folder / f"whole{seed}", top1=top1, seed=seed, **facts)
        write(folder / f"tenth{seed}", top1=top1 / 2, seed=seed, data=tenth, settings="tenth", **facts)


def test_there_is_a_page_with_tables_in_this_repository() -> None:
    assert ROOT / "README.md" in MARKED


@pytest.mark.parametrize("page", MARKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_this_repository_are_what_the_report_makes_of_the_committed_runs(page: Path) -> None:
    from vix.commands.report.blocks import fill

    text = page.read_bytes().decode("utf-8")
    filled = fill(text, page.parent)
    assert not filled.left_out
    assert filled.text == text, f"python main.py report --into {page.relative_to(ROOT)}"
    for file, content in filled.pictures.items():
        assert file.read_bytes().decode("utf-8") == content, f"python main.py report --into {page.relative_to(ROOT)}"


def test_blocks_are_filled_and_the_rest_stays_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path / "results" / "digits")
    page, blocks = tmp_path / "PAGE.md", [f"results/digits, {part}" for part in ("results", "shares", "circumstances")]
    page.write_bytes(WORDS.format("\n\nbetween\n\n".join(block(what, "old\ntext\n") for what in blocks)).encode())
    assert main(["--into", str(page)]) == 0
    first = page.read_bytes()
    table = (
        "| system | seeds | test top-1 % | test top-5 % | val top-1 %, best | val top-1 %, last |"
        " parameters | MFLOPs | time |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| vip | 2 | 93.00 ± 4.24 | 100.00 ± 0.00 | 80.00 ± 0.00 | 70.00 ± 0.00 | 1,000 | 2.0 | 10.0 s |\n"
    )
    shares = "| system | 10% of train | 100% of train |\n| --- | ---: | ---: |\n| vip | 46.50 ± 2.12 | 93.00 ± 4.24 |\n"
    told = "True means.\nRun on A \\| B, 2 threads, torch 2.15.0; commit 00000000, 11111111+ (+: changed since).\n"
    bodies = zip(blocks, (table, shares, told), strict=True)
    assert first.decode() == WORDS.format("\n\nbetween\n\n".join(block(*each) for each in bodies))
    assert main(["--into", str(page), "--into", str(page)]) == 0
    assert page.read_bytes() == first
    assert capsys.readouterr().out.splitlines() == [f"{page}: made anew", f"{page}: as it was", f"{page}: as it was"]
    assert {path.name for path in tmp_path.iterdir()} == {"PAGE.md", "results"}


def test_the_tables_are_those_of_the_report(tmp_path: Path) -> None:
    runs(tmp_path / "runs")
    page = tmp_path / "PAGE.md"
    page.write_text("\n".join(block(f"runs, {part}") for part in ("results", "shares", "circumstances")) + "\n")
    assert main(["--into", str(page)]) == 0
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--no-papers"]) == 0
    report = (tmp_path / "out" / "report.md").read_text().splitlines()
    lines = [line for line in page.read_text().splitlines() if not line.startswith("<!--")]
    assert len(lines) == 8
    assert all(line in report for line in lines)


def test_a_picture_is_a_file_of_its_own_that_browsers_can_read(tmp_path: Path) -> None:
    runs(tmp_path / "results" / "digits")
    page = tmp_path / "PAGE.md"
    page.write_text(block("results/digits, picture"))
    assert main(["--into", str(page)]) == 0
    image = "![Test accuracy against operations for an image](results/digits.svg)\n"
    assert page.read_text() == block("results/digits, picture", image)
    drawn = ElementTree.parse(tmp_path / "results" / "digits.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Performer", "plain", "vip", "MFLOPs an image", "test top-1 %"} <= set(words)


def test_a_folder_without_runs_says_not_yet_measured(tmp_path: Path) -> None:
    page = tmp_path / "PAGE.md"
    page.write_text(block("nowhere, results"))
    assert main(["--into", str(page)]) == 0
    assert page.read_text() == block("nowhere, results", "Not yet measured.\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("words", "no block to fill"),
        (block("runs, nonsense"), "report: runs, nonsense: expected a folder and one of results, shares"),
        (block("results"), "report: results: expected a folder and one of"),
        ("<!-- report: runs, results -->\n", "a block of the report has no end"),
        (block("runs, results") + "\n<!-- /report -->\n", "no end, or no beginning"),
        (block("runs, results"), "the folder has runs on CIFAR10 and Digits"),
    ],
)
def test_wrong_marks_are_told_and_the_page_stays_as_it_was(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "runs" / "a")
    write(tmp_path / "runs" / "b", data={"class_path": "datamodules.CIFAR10"})
    page = tmp_path / "PAGE.md"
    page.write_text(text)
    assert main(["--into", str(page)]) == 2
    assert told in capsys.readouterr().err
    assert page.read_text() == text


def test_what_a_page_says_itself_is_not_given_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--into", str(tmp_path / "none.md")]) == 2
    assert "none.md: No such file or directory" in capsys.readouterr().err
    assert main(["runs", "--into", "PAGE.md", "--no-papers"]) == 2
    assert "leave out folders, no_papers" in capsys.readouterr().err
