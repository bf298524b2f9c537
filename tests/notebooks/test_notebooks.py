"""The notebooks: clean in git, without models of their own, and running from top to bottom on real results."""

import ast
import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OURS = {path.stem for path in [*ROOT.glob("*.py"), *(ROOT / "notebooks").glob("*.py")]} | {"vix", "datamodules"}
# FNet has no queries and keys, and CvP no square matrices; each must be drawn as well as softmax
SYSTEMS = ("cvp", "fnet", "vit")
PICTURES = {"attention_maps": 3, "compare_runs": 2, "scaling_with_tokens": 1, "your_own_images": 1}


def code(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def parsed(path: Path) -> ast.Module:
    lines = "\n".join("".join(cell["source"]) for cell in code(path)).splitlines()
    return ast.parse("\n".join(line for line in lines if not line.startswith("%")))


def test_the_four_notebooks_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_git_has_no_outputs(path: Path) -> None:
    for cell in code(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_defines_no_model(path: Path) -> None:
    assert not [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_nothing_but_what_requirements_name(path: Path) -> None:
    named = {
        re.split(r"[^\w.-]", line)[0].lower()
        for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    modules = {
        name.partition(".")[0]
        for node in ast.walk(parsed(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    from_where = packages_distributions()
    for module in modules - OURS - set(sys.stdlib_module_names):
        assert named & {name.lower() for name in from_where[module]}, f"{module} is of no package in requirements.txt"


def run(*arguments: str, **variables: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small real runs on Digits."""
    folder = tmp_path_factory.mktemp("runs")
    more = [
        "--trainer.max_epochs",
        "1",
        "--data.fraction",
        "0.3",
        "--ema",
        "null",
        "--runs",
        str(folder),
        "--wandb.mode",
        "disabled",
    ]
    for name in SYSTEMS:
        run(
            "main.py",
            "fit",
            "--config",
            f"experiments/{name}.yaml",
            "--config",
            "experiments/overlays/digits.yaml",
            *more,
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_shows_its_pictures(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    variables = {"VIX_EPOCHS": "2", "WANDB_MODE": "disabled"}
    if path.stem == "your_own_images":
        run("notebooks/photographs.py", str(tmp_path / "images"))
        variables |= {"VIX_IMAGES": str(tmp_path / "images"), "VIX_RUNS": str(tmp_path / "runs")}
    elif path.stem != "scaling_with_tokens":
        variables["VIX_RUNS"] = str(request.getfixturevalue("runs"))
    run("-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", str(tmp_path), str(path), **variables)
    outputs = [output for cell in code(tmp_path / path.name) for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[path.stem]
