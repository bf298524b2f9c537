"""Every system on Digits with one recipe; some with less data, one with the published recipe, and an SVM.

    python -m benchmarks.digits            # all cells that are not there yet; stop it at any time, start it again later
    python -m benchmarks.digits --list     # which cells there are and which are done
    python main.py report benchmarks/results/digits --no-papers
    python main.py report --into README.md

A cell is one training and one test. It is done when its folder is in `results/digits`, which appears whole or not at
all.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
RESULTS = ROOT / "benchmarks" / "results" / "digits"
SEEDS = (0, 1, 2)
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)
# Those of the data-efficiency curve: softmax and each way around it, without and with convolutions.
CURVE = ("vit_rope", "vip_rope", "vin_rope", "hybrid_vip_rope", "cct", "mlp_mixer")
ABLATED, BARE = "vip_rope", "published_recipe"
SVM = "svm_rbf"
# Seconds that a training may take on two cores.
BUDGET = 40
KEPT = ("results.json", "metrics.csv")


@dataclass(frozen=True)
class Cell:
    """One training and one test.

    Args:
        experiment: Stem of the system's YAML, or `SVM`.
        seed: Of weights, order and augmentation.
        share: Part of the training images.
        overlay: A YAML after that of the data, or nothing.
        data: The overlay of the data; empty for the data of the recipe, CIFAR-10.
    """

    experiment: str
    seed: int = 0
    share: float = 1.0
    overlay: str = ""
    data: str = "digits"

    @property
    def name(self) -> str:
        """Folder in the results."""
        overlay = f"-{self.overlay}" if self.overlay else ""
        return f"{self.experiment}{overlay}-{self.share * 100:g}-seed{self.seed}"


def systems() -> list[str]:
    """All systems and RoPE versions: the YAMLs beside the recipe."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem != "defaults")


def cells() -> dict[str, list[Cell]]:
    """The cells of each table, seed by seed, so that a half-filled table is fair; a cell may be in two."""
    return {
        "svm": [Cell(SVM, share=share) for share in SHARES],
        "systems": [Cell(name, seed) for seed in SEEDS for name in systems()],
        "recipe": [
            Cell(ABLATED, seed, share, overlay) for seed in SEEDS for share in (1.0, 0.1) for overlay in ("", BARE)
        ],
        "data": [Cell(name, seed, share) for seed in SEEDS for share in SHARES for name in CURVE],
    }


@cache
def train_images(share: float) -> int:
    """Images that a share leaves to train on."""
    from datamodules import Digits

    data = Digits(fraction=share)
    data.setup("fit")
    return len(data.train_indices)


def schedule(share: float) -> list[str]:
    """Options that give a share as many steps, and as many validations, as all images have.

    A small share has few steps an epoch. With the epochs of the overlay it would be trained less as well, and the curve
    would show two things at once.
    """
    if share == 1:
        return []
    overlay = yaml.safe_load((EXPERIMENTS / "overlays" / "digits.yaml").read_text(encoding="utf-8"))
    batch, epochs = overlay["data"]["init_args"]["batch_size"], overlay["trainer"]["max_epochs"]
    whole, part = (-(-train_images(each) // batch) for each in (1.0, share))
    every = max(1, round(whole / part))
    return [
        f"--data.fraction={share:g}",
        f"--trainer.max_epochs={epochs * every}",
        f"--trainer.check_val_every_n_epoch={every}",
    ]


def fit_arguments(cell: Cell, runs: Path) -> list[str]:
    """What `main.py` gets for the training of a cell."""
    overlays = [EXPERIMENTS / "overlays" / f"{name}.yaml" for name in (cell.data, cell.overlay) if name]
    files = [EXPERIMENTS / f"{cell.experiment}.yaml", *overlays]
    configs = [text for file in files for text in ("--config", str(file.relative_to(ROOT)))]
    options = [f"--seed_everything={cell.seed}", f"--runs={runs}", "--wandb.mode=disabled", *schedule(cell.share)]
    return ["fit", *configs, *options]


def train(cell: Cell, work: Path, threads: int) -> Path:
    """Trains and tests; gives the run's folder.

    Raises:
        subprocess.CalledProcessError: If either fails; its output is in `work`.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def call(arguments: Sequence[str]) -> None:
        with (work / "log.txt").open("a", encoding="utf-8") as log:
            command = [sys.executable, "main.py", *arguments]
            subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=True)

    call(fit_arguments(cell, work))
    (folder,) = (work / cell.experiment).iterdir()
    call(["test", "--ckpt_path", str(folder)])
    return folder


def support_vectors(cell: Cell, work: Path) -> Path:
    """Scikit-learn's support vector machine with a Gaussian kernel on the same split, its constants from validation.

    It has one result and no spread: nothing in it is random but the subset, which is the same for all seeds.
    """
    from sklearn.svm import SVC

    from datamodules import Digits

    data = Digits(fraction=cell.share, batch_size=10_000)
    data.setup()

    def arrays(loader: Any) -> tuple[Any, Any]:
        (batch,) = loader
        return batch.images.flatten(1).numpy() / 255, batch.labels.numpy()

    train_x, train_y = arrays(data.train_dataloader())
    val_x, val_y = arrays(data.val_dataloader())
    test_x, test_y = arrays(data.test_dataloader())
    tried = []
    for c in (1, 10, 100):
        # scikit-learn's own choice, and around it
        for factor in (0.5, 1, 2):
            gamma = factor / (train_x.shape[1] * train_x.var())
            machine = SVC(C=c, gamma=gamma).fit(train_x, train_y)
            tried.append((machine.score(val_x, val_y), c, factor, machine))
    # the first of equals, as with epochs
    val, c, factor, machine = max(tried, key=lambda each: each[0])
    results = {
        "experiment": SVM,
        "finished": True,
        "best": {"val/top1": val},
        "test": {"test/top1": machine.score(test_x, test_y), "images": len(test_y)},
        "seed": None,
        "settings": f"svm-{cell.share * 100:g}",
        "overlays": ["digits"],
        "data": {"class_path": "datamodules.Digits", "init_args": {"fraction": cell.share}},
        "machine": {"class_path": "sklearn.svm.SVC", "init_args": {"C": c, "gamma": f"{factor} x scale"}},
        "written": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return work


def keep(folder: Path, target: Path) -> None:
    """Copies what is committed of a run; the target appears whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, part / name)
    part.replace(target)


def chosen(tables: Sequence[str], names: Sequence[str]) -> Iterator[Cell]:
    """The cells of some tables, each once; of some experiments alone where names are given."""
    known = cells()
    for cell in dict.fromkeys(cell for table in tables for cell in known[table]):
        if not names or cell.experiment in names:
            yield cell


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the cells that are missing.

    Returns:
        0, or 1 where a cell failed; the others are filled all the same.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=list(cells()), default=list(cells()))
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="these experiments alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="these seeds alone")
    parser.add_argument("--threads", type=int, default=2, help="of each training (default 2)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once; their times are then no measurement")
    parser.add_argument("--limit", type=int, help="stop after so many cells")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("runs", "digits"), help="folder of the run folders")
    options = parser.parse_args(arguments)
    all_cells = [cell for cell in chosen(options.tables, options.only) if cell.seed in options.seeds]
    missing = [cell for cell in all_cells if not (options.results / cell.name).is_dir()]
    if options.list:
        for cell in all_cells:
            print(f"{'-' if cell in missing else 'done':<5}{cell.name}")
        return 0
    print(f"{len(all_cells) - len(missing)} of {len(all_cells)} cells are done", flush=True)
    chosen_cells = missing[: options.limit]
    return fill(chosen_cells, options.results, options.work, threads=options.threads, budget=BUDGET, jobs=options.jobs)


def fill(missing: Sequence[Cell], results: Path, work: Path, *, threads: int, budget: float, jobs: int = 1) -> int:
    """Trains and tests cells in their order, and keeps what is committed of each.

    Args:
        missing: The cells.
        results: Folder that gets a folder for each.
        work: Folder of the run folders.
        threads: Of the processor, for each training.
        budget: Seconds above which a training is told.
        jobs: Trainings at once.

    Returns:
        0, or 1 where a cell failed; the others are filled all the same.
    """

    def done(cell: Cell) -> bool:
        place = work.absolute() / cell.name
        try:
            folder = support_vectors(cell, place) if cell.experiment == SVM else train(cell, place, threads)
        except subprocess.CalledProcessError:
            print(f"{cell.name}: failed, see {work / cell.name / 'log.txt'}", flush=True)
            return False
        keep(folder, results / cell.name)
        found = json.loads((results / cell.name / "results.json").read_text(encoding="utf-8"))
        seconds = found.get("wall_seconds", 0.0)
        over = f"  OVER the budget of {budget:g} s" if seconds > budget and jobs == 1 else ""
        there = sum((results / each.name).is_dir() for each in missing)
        score = f"{cell.name:<36} test {found['test']['test/top1']:.2%}"
        print(f"{there}/{len(missing)}  {score}  {seconds:5.1f} s{over}", flush=True)
        return True

    with ThreadPoolExecutor(jobs) as pool:
        return int(not all(list(pool.map(done, missing))))


if __name__ == "__main__":
    sys.exit(main())
