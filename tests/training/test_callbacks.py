"""Progress on a terminal and in a log, and checkpoints that are whole or not there."""

import os
import re
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar

from tests.training.standin import fit, net
from vix.training import ImageClassifier
from vix.training.callbacks import BestAndLast, LineProgress, RichProgress
from vix.training.callbacks import progress as progress_module
from vix.training.callbacks.predictions import table
from vix.training.errors import StorageError
from vix.training.runs import Run


def test_the_bar_shows_images_a_second_score_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = RichProgress()
    fit(ImageClassifier(net()), tmp_path, enable_progress_bar=True, callbacks=[bar])
    shown = capsys.readouterr().out
    assert re.search(r"epoch 2/2 .* 5/5 .*images/s .*val/top1: .*left: 0:00:00", " ".join(shown.split()))


def test_the_bar_never_waits_for_the_device_between_validations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    original = RichProgressBar.get_metrics

    def counted(*arguments: object) -> object:
        nonlocal reads
        reads += 1
        return original(*arguments)

    monkeypatch.setattr(RichProgressBar, "get_metrics", counted)
    fit(ImageClassifier(net()), tmp_path, enable_progress_bar=True, callbacks=[RichProgress()], max_epochs=3)
    assert reads == 3


def test_a_log_gets_about_as_many_lines_as_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(ImageClassifier(net()), tmp_path, enable_progress_bar=True, callbacks=[LineProgress(lines=3)], max_epochs=9)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["3/9", "6/9", "9/9"]


def test_speed_counts_images_and_not_what_lies_between_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    speed = progress_module.Speed()
    now = 200.0
    speed.start()
    for _ in range(4):
        now += 0.25
        speed.add(50)
    assert speed.rate == pytest.approx(200)


def test_best_is_the_first_of_equals_and_last_the_final_epoch(tmp_path: Path) -> None:
    module = ImageClassifier(net())
    module.requires_grad_(False)
    module.net.get_parameter("head.weight").requires_grad_(True)
    module.lr = 0.0
    _, run = fit(module, tmp_path, max_epochs=3)
    assert [torch.load(path, weights_only=True)["epoch"] for path in (run.best, run.last)] == [0, 2]


def test_a_failed_write_leaves_the_checkpoint_before_it_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageClassifier(net())
    trainer, run = fit(module, tmp_path, max_epochs=1)
    before = run.last.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"last\.ckpt cannot be written: No space left"):
        BestAndLast(run).on_train_epoch_end(trainer, module)
    assert run.last.read_bytes() == before
    assert {path.name for path in run.last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_predictions_are_one_row_an_image_under_their_names() -> None:
    assert table([(0, 2, 1, 0.5)]) == "index,label,prediction,probability\n0,2,1,0.500000\n"


def test_places_in_a_run_do_not_create_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "vip" / "1")
    assert (run.experiment, run.id) == ("vip", "1")
    assert not (tmp_path / "runs").exists()
