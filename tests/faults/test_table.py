"""The table of faults names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
TABLE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def definitions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED.findall(TABLE))))
def test_every_test_that_the_table_of_faults_names_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert not name or name in definitions(ROOT / file)


def test_every_row_names_a_test() -> None:
    rows = [line for line in TABLE.splitlines() if line.startswith("|") and not re.match(r"\|( fault |---)", line)]
    assert len(rows) > 5
    assert [row for row in rows if not NAMED.search(row)] == []
