"""`python main.py report`: all runs in one table beside the published numbers, as Markdown, CSV and one HTML page."""

import argparse
import sys
from pathlib import Path

PAPERS = Path(__file__).resolve().parents[3] / "experiments" / "papers"
EPILOG = """\
Runs whose settings are the same are averaged over their seeds; a number is mean ± sd (n - 1), or alone where there is
one seed. `test` is the checkpoint `best` on the official test split, once `main.py test` was run; which epoch that is
each run says.
It reads results.json and metrics.csv of each run folder and nothing else.
  python main.py report                              all of runs/
  python main.py report runs/vip runs/vin --out cmp  two experiments
  python main.py report --into README.md             makes the tables of a page anew: what stands between
                                                     <!-- report: FOLDER, PART --> and <!-- /report -->
"""


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(
        prog="main.py report",
        description="Compares runs in one table, with learning curves and accuracy against cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folders", nargs="*", type=Path, default=[], help="folders of runs (default runs)")
    made.add_argument("--out", type=Path, default=Path("runs", "report"), help="folder of the report")
    made.add_argument("--papers", type=Path, default=PAPERS, help="folder of published numbers, one YAML a source")
    made.add_argument("--no-papers", action="store_true", help="leave the published numbers out")
    made.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        metavar="PAGE",
        help="make the marked tables and pictures of a Markdown page anew, and nothing else; may be given again",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and prints its tables.

    Args:
        arguments: As on the command line, which is taken where they are left out.

    Returns:
        The exit code: 0, or 2 where there is nothing to report, or a page or a file of published numbers is wrong.
    """
    made = parser()
    options = made.parse_args(arguments)
    if options.into:
        idle = [
            name
            for name in ("folders", "out", "papers", "no_papers")
            if getattr(options, name) != made.get_default(name)
        ]
        if idle:
            print(f"--into takes everything from the page's marks; leave out {', '.join(idle)}", file=sys.stderr)
            return 2
        return rewrite(options.into)
    # `--help` need not wait for these.
    from vix.commands.report.page import page
    from vix.commands.report.papers import read_papers
    from vix.commands.report.runs import collect, group
    from vix.commands.report.tables import as_csv, as_markdown

    try:
        runs, left_out = collect(options.folders or [Path("runs")])
        papers = [] if options.no_papers else read_papers(options.papers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    rows = group(runs)
    text = as_markdown(rows, papers)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "report.md": text,
        "report.csv": as_csv(rows),
        "report.html": page(rows, papers),
    }.items():
        (options.out / name).write_text(content, encoding="utf-8", newline="\n")
    print(text)
    print(f"written to {options.out}: report.md, report.csv, report.html")
    return 0


def rewrite(pages: list[Path]) -> int:
    """Makes the marked tables and pictures of pages anew; each file is written whole or stays as it was.

    Returns:
        0, or 2 where a page is missing or its marks are wrong.
    """
    from vix.commands.report.blocks import fill

    for path in pages:
        try:
            text = path.read_text(encoding="utf-8")
            filled = fill(text, path.parent)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            print(f"{path}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
            return 2
        for reason in filled.left_out:
            print(f"left out: {reason}", file=sys.stderr)
        for file, content in {**filled.pictures, path: filled.text}.items():
            same = file.is_file() and file.read_text(encoding="utf-8") == content
            if not same:
                temporary = file.with_name(f".{file.name}.part")
                temporary.write_text(content, encoding="utf-8", newline="\n")
                temporary.replace(file)
            print(f"{file}: {'as it was' if same else 'made anew'}")
    return 0
