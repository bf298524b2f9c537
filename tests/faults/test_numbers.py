"""Numbers that stop being finite and memory that is used up: told by step and layer, and nothing good is lost."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import main
from tests.faults.denial import memory_above
from tests.faults.processes import Command, runs
from tests.test_main import QUICK, fit, small
from tests.training.standin import Foreign, Noise, net
from tests.training.standin import fit as train
from vix.training import ImageClassifier
from vix.training.checkpoint import read_checkpoint
from vix.training.errors import TrainingError
from vix.training.memory import is_exhausted, what_fits
from vix.training.numerics import first_trouble
from vix.training.runs import Run

NAN = float("nan")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


class BrokenBackward(torch.autograd.Function):
    """Gives its input, and a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class Breaking(nn.Module):
    """A net of two layers that breaks at some of its steps, forward or backward."""

    def __init__(self, steps: set[int], *, backward: bool = False) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(16, 16), nn.Linear(16, 3)
        self.steps, self.backward, self.calls = steps, backward, 0

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1))
        # called once more to find the layer, which counts for the same step
        broken = self.calls in self.steps
        self.calls += torch.is_grad_enabled()
        if broken or (not torch.is_grad_enabled() and self.training and self.calls - 1 in self.steps):
            x = BrokenBackward.apply(x) if self.backward else x * NAN
        return self.rest(x)


def classifier(module: nn.Module, **options: Any) -> ImageClassifier:
    return ImageClassifier(module, optimizer=partial(SGD, lr=0.1, momentum=0.9), **options)


def test_a_rate_that_is_too_high_stops_the_run_and_names_step_and_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["fit", *small(), *QUICK, "--model.optimizer.lr=1e30", "--save_every=1"]) == 1
    told = capsys.readouterr().err
    assert "step 2 (epoch 1): the loss is nan; first not finite was the output of net." in told
    assert "--model.optimizer.lr" in told
    assert len(told.splitlines()) <= 5
    (run,) = (Run(folder) for folder in Path("runs/vip_rope").iterdir())
    assert f"python main.py fit --ckpt_path {run.folder}" in told
    checkpoint = read_checkpoint(run.last)
    assert checkpoint.step == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint.weights.values())


@pytest.mark.parametrize(
    ("backward", "told"),
    [
        (False, r"step 4 \(epoch 1\): the loss is nan; first not finite was the input of net.rest \(Linear\)"),
        (True, r"step 4 \(epoch 1\): a gradient is not finite; all outputs are finite; first in backward came the "
               r"gradient of net.first.bias and of 1 more"),
    ],
    ids=["loss", "gradient"],
)  # fmt: skip
def test_a_step_that_breaks_is_stopped_before_it_changes_a_weight(backward: bool, told: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = classifier(Breaking({3}, backward=backward))
    with pytest.raises(TrainingError, match=told):
        train(module, tmp_path)
    torch.manual_seed(0)
    sound = classifier(Breaking(set()))
    train(sound, tmp_path, max_epochs=1, limit_train_batches=3)
    torch.testing.assert_close(module.state_dict(), sound.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("backward", [False, True], ids=["loss", "gradient"])
def test_a_batch_that_is_left_out_leaves_no_trace(
    backward: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = classifier(Breaking({3}, backward=backward), nonfinite="skip")
    train(module, tmp_path, max_epochs=1, limit_train_batches=4)
    assert "this batch is left out" in capsys.readouterr().out
    torch.manual_seed(0)
    sound = classifier(Breaking(set()))
    train(sound, tmp_path, max_epochs=1, limit_train_batches=3)
    torch.testing.assert_close(module.state_dict(), sound.state_dict(), rtol=0, atol=0)


def test_ten_batches_in_a_row_are_not_left_out(tmp_path: Path) -> None:
    module = classifier(Breaking(set(range(3, 40))), nonfinite="skip")
    with pytest.raises(TrainingError, match=r"step 13 \(epoch 3\): the loss is nan, the 10th in a row"):
        train(module, tmp_path, max_epochs=4)


def test_infinities_of_the_scaler_are_its_own_affair(tmp_path: Path) -> None:
    module = classifier(Breaking({0}, backward=True))
    module.trainer = type("Trainer", (), {"precision": "16-mixed", "strategy": type("S", (), {"reduce": _same})})()
    module._loss = torch.tensor(1.0)
    module.net.first.weight.grad = torch.full((16, 16), float("inf"))
    assert module._finite_step()
    module._loss = torch.tensor(NAN)
    assert not module._finite_step()


def _same(tensor: Tensor, reduce_op: str) -> Tensor:
    return tensor


def test_images_and_weights_that_are_not_finite_are_named() -> None:
    module, images = Foreign(), torch.zeros(4, 1, 4, 4)
    images[2, 0, 1, 1] = NAN
    assert first_trouble(module, images) == "image 2 of the batch has such values already"
    with torch.no_grad():
        module.layer.bias[0] = float("inf")
    assert first_trouble(module, torch.zeros(4, 1, 4, 4)) == "net.layer.bias itself is not finite"


def test_looking_for_the_layer_changes_nothing_of_the_net_and_its_randomness() -> None:
    module = net(dropout=0.5)
    module.train()
    state, before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first_trouble(module, torch.full((2, 1, 4, 4), 1e38))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert not any(part._forward_hooks for part in module.modules())


def test_a_validation_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    class Late(Noise):
        def val_dataloader(self) -> Any:
            for batch in (batches := super().val_dataloader()):
                batch.images.fill_(NAN)
            return batches

    run = fit("--monitor=val/loss", "--trainer.max_epochs=2")
    from vix.training.callbacks import BestAndLast

    checkpoints = BestAndLast(run, monitor="val/loss")
    assert not checkpoints.is_best({"val/loss": NAN})
    assert checkpoints.is_best({"val/loss": 2.0})


HUNGRY = [
    *small("vit"),
    *QUICK,
    "--data.fraction=1",
    "--data.batch_size=1024",
    "--model.net.patch_size=1",
    "--model.net.dim=128",
    "--model.net.depth=2",
    "--model.net.mlp_dim=512",
]


@pytest.mark.slow
def test_where_memory_does_not_suffice_it_is_said_what_would(tmp_path: Path) -> None:
    command = Command(["fit", *HUNGRY], tmp_path / "hungry", prepare=partial(memory_above, 200 << 20))
    assert command.wait() == 1, command.log
    assert "Traceback" not in command.log
    assert "out of memory on cpu with batches of 1024 images; what was tried and fits" in command.log
    assert "--data.batch_size=" in command.log
    batches = [int(line.rpartition("=")[2]) for line in command.log.splitlines() if "accumulate" in line]
    assert batches
    assert not [run for run in runs(tmp_path / "hungry") if run.last.is_file()]


def test_what_fits_is_found_by_trying() -> None:
    class Greedy(nn.Module):
        """Takes memory by the image, half of it in half precision."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.checkpointing = nn.Linear(4, 3), False

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            self.checkpointing = enable

        def forward(self, images: Tensor) -> Tensor:
            x = self.layer(images.flatten(1))
            if len(images) * x.element_size() > (1000 if self.checkpointing else 30):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return x

    batch = type("Batch", (), {"images": torch.zeros(20, 1, 2, 2), "labels": torch.zeros(20, dtype=torch.long)})
    found = what_fits(Greedy(), batch, nn.functional.cross_entropy, torch.device("cpu"), 2)
    assert found == [
        "--data.batch_size=5 --trainer.accumulate_grad_batches=8",
        "--model.grad_checkpointing=true",
    ]


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_a_want_of_memory_is_taken_for_one(error: Exception, exhausted: bool) -> None:
    assert is_exhausted(error) is exhausted
