"""The same seed, the same result: bit by bit on a processor, for every system; and no two processes share a seed."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests.test_main import SYSTEMS, small
from vix.training import ImageClassifier
from vix.training.callbacks.ranks import rank_seed

EXPERIMENTS = Path(main.__file__).parent / "experiments"
# Everything random is switched on: dropout, stochastic depth, augmentation, mixing, the average of the weights.
RANDOM = ["--model.net.dropout=0.2", "--data.augment.crop=1", "--data.augment.mixup=0.5", "--ema=0.9"]
SHORT = [
    *("--config", str(EXPERIMENTS / "overlays" / "digits.yaml"), "--data.fraction=0.1", "--trainer.max_epochs=2"),
    *("--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"),
]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def trained(name: str, runs: str, *extra: str) -> Path:
    # what else happened in this process must not matter
    torch.manual_seed(int.from_bytes(runs.encode(), "little"))
    random = [each for each in RANDOM if "dropout" not in each or takes_dropout(name)]
    assert main.main(["fit", *small(name), *SHORT, *random, f"--runs={runs}", *extra]) == 0
    (folder,) = Path(runs).glob("*/*")
    return folder


def takes_dropout(name: str) -> bool:
    import yaml

    import vix
    from vix.spec import parameters_of

    content = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return "dropout" in parameters_of(getattr(vix, content["model"]["net"]["class_path"].removeprefix("vix.")))


def bits(value: Any) -> Any:
    """A checkpoint with every tensor as the hash of its bits; times apart."""
    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            hashlib.sha256(value.contiguous().view(-1).numpy().tobytes()).digest(),
        )
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items() if key != "seconds"}
    return [bits(item) for item in value] if isinstance(value, list | tuple) else value


def state(folder: Path) -> Any:
    return bits(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True))


def numbers(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_two_runs_of_one_seed_are_equal_bit_by_bit(name: str) -> None:
    first, second = trained(name, "a"), trained(name, "b")
    assert state(first) == state(second)
    assert numbers(first) == numbers(second)


def test_another_seed_is_another_run_and_workers_change_nothing() -> None:
    first, other = trained("vip_rope", "a"), trained("vip_rope", "b", "--seed_everything=1")
    assert state(first)["state_dict"] != state(other)["state_dict"]
    assert state(trained("vip_rope", "c", "--data.num_workers=2"))["state_dict"] == state(first)["state_dict"]


@pytest.mark.parametrize(("asked", "on"), [("true", True), ("false", False), ("warn", True), ("null", False)])
def test_deterministic_is_honoured(asked: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(module: ImageClassifier) -> None:
        seen.append(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )

    monkeypatch.setattr(ImageClassifier, "on_train_epoch_start", look, raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        trained("vit", "a", f"--trainer.deterministic={asked}")
    finally:
        torch.use_deterministic_algorithms(before)
    assert set(seen) == {(on, asked == "warn")}


def test_seeds_of_ranks_follow_from_the_runs_seed_and_are_all_different() -> None:
    seeds = [rank_seed(seed, rank) for seed in range(8) for rank in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [rank_seed(seed, rank) for seed in range(8) for rank in range(64)]
    assert [rank_seed(seed, 0) for seed in range(8)] == list(range(8))
