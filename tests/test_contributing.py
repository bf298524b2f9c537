"""CONTRIBUTING.md shows how to add an attention: here it is added to a copy of the tree, and used as the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with the page's attention: one new file, one new line."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add an attention")[2]
    kernel, line = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert line.count("\n") == 1
    copy = tmp_path_factory.mktemp("copy")
    for name in ("vix", "datamodules", "experiments", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("main.py", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "vix/attention/efficient.py").write_text(kernel, encoding="utf-8")
    package = copy / "vix/attention/__init__.py"
    package.write_text(package.read_text(encoding="utf-8").replace("\nKERNELS", f"{line}\nKERNELS"), encoding="utf-8")
    return copy


def run(copy: Path, *arguments: str) -> str:
    """Runs python in the copy and returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_attention_of_the_page_keeps_the_contract(copy: Path) -> None:
    printed = run(copy, "-m", "pytest", "-q", "tests/attention/test_contract.py", "-k", "Efficient")
    found = re.search(r"(\d+) passed", printed)
    assert found is not None
    assert int(found[1]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("system", ["vit", "levit", "cvt", "cct"])
def test_the_attention_of_the_page_trains_in_every_body(copy: Path, system: str) -> None:
    options = [] if system == "vit" else ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    if system == "levit":
        options += ["--model.net.position", "values"]
    run(
        copy,
        *("main.py", "fit", "--config", f"experiments/{system}.yaml", "--config", "experiments/overlays/digits.yaml"),
        *("--model.net.attention", "vix.attention.EfficientAttention", "--trainer.max_epochs", "1", *options),
    )
    assert list((copy / "runs" / system).glob("*/results.json"))


@pytest.mark.slow
def test_the_attention_of_the_page_is_in_the_tables(copy: Path) -> None:
    printed = run(copy, "main.py", "bench", "EfficientAttention", "--tokens", "16", "64", "--rounds", "2")
    assert "EfficientAttention" in printed
