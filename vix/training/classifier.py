"""The one LightningModule: it trains, validates, tests and predicts with any net that maps images to logits."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import AdamW

from vix.spec import build
from vix.training.callbacks.average import choose_trained
from vix.training.checkpoint import COMPILED, TRUSTED, describe_data, read_checkpoint
from vix.training.console import say
from vix.training.errors import TrainingError, UsageError
from vix.training.metrics import Scores
from vix.training.numerics import MOST_SKIPPED, first_trouble, largest_gradient
from vix.training.optim import (
    OptimizerFactory,
    Schedule,
    ScheduledRate,
    import_path,
    keep_settings,
    parameter_groups,
)
from vix.training.processes import is_first


class ImageBatch(Protocol):
    """What a datamodule gives: normalised images with their labels and places in the official split."""

    images: Tensor
    labels: Tensor
    indices: Tensor


class ImageClassifier(LightningModule):
    """Trains a net by cross-entropy.

    It logs `train/loss_step` and `lr` at every `log_every_n_steps`-th step, and by epoch, as true means over images,
    `{train,val,test}/{loss,top1,top5}`. `train/loss` has the label smoothing in it, the others have not. Of images that
    are mixed the training scores are named `train/top1_mixed`: right is the class of the larger share.

    Args:
        net: Images (b, channels, y, x) in, logits (b, classes) out.
        optimizer: Makes the optimiser from parameter groups: a class or a `functools.partial` of one.
        schedule: The rate's course by step; None holds it.
        label_smoothing: Share of each label that is spread over all classes, 0 to 1.
        decay_all: Whether weight decay is for all parameters, as in the published recipe, or for matrices alone.
        compile_net: Whether to compile the net; a mapping is taken as the arguments of `torch.compile`.
        grad_checkpointing: Whether the net computes its blocks again in the backward pass instead of storing them.

        nonfinite: What is done where a loss or a gradient is not finite: `stop` ends the training before the weights
            are touched; `skip` leaves the batch out, but not ten in a row.

    Raises:
        ValueError: If `label_smoothing` is no share, `optimizer` no class, `nonfinite` no such word, or the net cannot
            checkpoint.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        optimizer: OptimizerFactory = AdamW,
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
        decay_all: bool = False,
        compile_net: bool | dict[str, Any] = False,
        grad_checkpointing: bool = False,
        nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {label_smoothing}")
        if nonfinite not in ("stop", "skip"):
            raise ValueError(f"nonfinite must be stop or skip, got {nonfinite!r}")
        if not callable(optimizer):
            raise ValueError(f"optimizer must be a class such as torch.optim.AdamW, got {optimizer}")
        if grad_checkpointing:
            switch: Any = getattr(net, "set_grad_checkpointing", None)
            if switch is None:
                raise ValueError(f"grad_checkpointing needs set_grad_checkpointing(), {type(net).__name__} has none")
            switch()
        self.net = net
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        self.decay_all = decay_all
        self.compile_net = compile_net
        self.nonfinite = nonfinite
        self._compiled = False
        # Weights to take instead of a checkpoint's: its own, carried over to another size of image.
        self.carried: Mapping[str, Tensor] | None = None
        # Lightning's rate finder sets this; while it is None the rate is the optimiser's own.
        self.lr: float | None = None
        # The last batch and its loss, not yet waited for.
        self.batch: ImageBatch | None = None
        self._loss = torch.zeros(())
        self._skipped = 0
        self.train_scores, self.val_scores, self.test_scores = Scores(), Scores(), Scores()
        # Plain types, never the objects: a checkpoint with objects in it cannot be loaded safely.
        self.save_hyperparameters(
            {
                "net": getattr(net, "spec", None),
                "optimizer": factory_spec(optimizer),
                "schedule": schedule.spec if schedule else None,
                "label_smoothing": label_smoothing,
                "decay_all": decay_all,
                "compile_net": compile_net,
                "grad_checkpointing": grad_checkpointing,
                "nonfinite": nonfinite,
            },
            logger=False,
        )

    def setup(self, stage: str) -> None:
        """Compiles in place, so that names in the state do not change."""
        if self.compile_net and not self._compiled:
            self._compiled = True
            self.net.compile(**(self.compile_net if isinstance(self.compile_net, dict) else {}))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, classes) of normalised images (b, channels, y, x)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: ImageBatch, batch_index: int) -> Tensor:
        """The loss with label smoothing; nothing here waits for the device."""
        self.batch = batch
        logits = self(batch.images)
        loss = self.training_loss(batch, logits)
        self._loss = loss.detach()
        self.train_scores.update(self._loss, logits.detach(), batch.labels)
        return loss

    def training_loss(self, batch: ImageBatch, logits: Tensor) -> Tensor:
        """What training makes small."""
        return cross_entropy(logits, batch.labels, self.label_smoothing)

    def on_train_start(self) -> None:
        """Finds the parts of the net that count optimiser steps, such as a Performer that redraws its features."""
        self._counting: list[Any] = [part for part in self.net.modules() if hasattr(part, "after_step")]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step, counts and logs it; all that before a checkpoint of this very step may be written."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().optimizer_step(*args, **kwargs)
        for part in self._counting:
            part.after_step()
        # Lightning's own way to the loggers leads there after the checkpoint
        step = self.trainer.global_step
        if (step + 1) % getattr(self.trainer, "log_every_n_steps", 50) == 0:
            loss = self.trainer.strategy.reduce(self._loss.clone(), reduce_op="mean")
            for logger in self.trainer.loggers:
                values = {"train/loss_step": float(loss), "lr": rate}
                logger.log_metrics({**values, "epoch": self.trainer.current_epoch}, step=step)

    def on_train_epoch_end(self) -> None:
        """Logs the epoch's means, to the loggers at once: Lightning would after the epoch's checkpoint is written."""
        means = self._log_epoch("train", self.train_scores, logger=False)
        for logger in self.trainer.loggers:
            values = {name: value.item() for name, value in means.items()}
            logger.log_metrics({**values, "epoch": self.trainer.current_epoch}, step=self.trainer.global_step - 1)

    def on_validation_epoch_start(self) -> None:
        """Gives all processes the first one's buffers, as its checkpoint has them.

        Running statistics and redrawn features differ between processes after a step, until the next forward pass of
        training; each would score a net of its own.
        """
        if dist.is_available() and dist.is_initialized():
            for buffer in self.net.buffers():
                dist.broadcast(buffer, src=0)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Looks whether the step's numbers are finite, before clipping spreads what is not."""
        if self._finite_step():
            self._skipped = 0
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        step, epoch = self.trainer.global_step + 1, self.trainer.current_epoch + 1
        assert self.batch is not None
        what = f"step {step} (epoch {epoch}): " + (
            "a gradient is not finite" if self._loss.isfinite() else f"the loss is {float(self._loss)}"
        )
        where = first_trouble(self.net, self.batch.images)
        self._skipped += 1
        if self.nonfinite == "stop" or self._skipped >= MOST_SKIPPED:
            row = f", the {self._skipped}th in a row" if self.nonfinite == "skip" else ""
            raise TrainingError(
                f"{what}{row}; {where}\nStopped before this step changed the weights. What may help: a lower "
                "--model.optimizer.lr, --trainer.gradient_clip_val=1, --trainer.precision=32-true"
                + ("" if self.nonfinite == "skip" else ", or --model.nonfinite=skip")
            )
        if is_first():
            say(f"{what}; {where}; this batch is left out")
        # an optimiser passes by what has no gradient
        optimizer.zero_grad(set_to_none=True)

    def _finite_step(self) -> bool:
        """Whether loss and gradients are finite, the same in all processes; waits for the device."""
        if self.trainer.precision == "16-mixed":
            # the scaler's first gradients are infinite by design, and it leaves out those steps itself
            return bool(self.trainer.strategy.reduce(self._loss.float(), reduce_op="sum").isfinite())
        largest = largest_gradient(self.net.parameters())
        # gradients are the same in all processes, losses are not, and one that is not finite leaves no gradient finite
        alone = self.trainer.world_size == 1
        return bool(largest.isfinite() & self._loss.isfinite().to(largest.device) if alone else largest.isfinite())

    def validation_step(self, batch: ImageBatch, batch_index: int) -> dict[str, Tensor]:
        """Adds a batch to the validation scores and says what was predicted for each image."""
        return predict(batch, self._evaluate(batch, self.val_scores))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation scores."""
        self._log_epoch("val", self.val_scores)

    def test_step(self, batch: ImageBatch, batch_index: int) -> dict[str, Tensor]:
        """Adds a batch to the test scores and says what was predicted for each image."""
        return predict(batch, self._evaluate(batch, self.test_scores))

    def on_test_epoch_end(self) -> None:
        """Logs the test scores."""
        self._log_epoch("test", self.test_scores)

    def predict_step(self, batch: ImageBatch, batch_index: int) -> dict[str, Tensor]:
        """What is predicted for each image."""
        return predict(batch, self(batch.images))

    def configure_optimizers(self) -> Any:
        """The optimiser over the net's groups; the schedule counts optimiser steps, accumulation included."""
        optimizer = self.optimizer(parameter_groups(self.net, decay_all=self.decay_all))
        if self.lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = self.lr
        keep_settings(optimizer)
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UsageError("schedule: training has no end; give trainer.max_epochs or trainer.max_steps")
        scheduler = ScheduledRate(optimizer, self.schedule, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what later commands need to know of the data."""
        about = {**describe_data(self._datamodule), **checkpoint.get("vix", {})}
        checkpoint["vix"] = {**about, "train_scores": self.train_scores.sums(self.trainer.strategy.all_gather)}
        if self.lr is not None and checkpoint["hyper_parameters"]["optimizer"]:
            checkpoint["hyper_parameters"]["optimizer"]["init_args"]["lr"] = self.lr

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drops what wrapping compilers add to names, and refuses weights that do not fit in a few words.

        A training that is resumed goes on with its weights; everything else takes their average where there is one.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            choose_trained(checkpoint)
            if sums := checkpoint.get("vix", {}).get("train_scores"):
                self.train_scores.go_on(sums, self.trainer.global_rank, self.trainer.world_size)
        checkpoint["state_dict"] = {
            name.replace(COMPILED, ""): tensor for name, tensor in checkpoint["state_dict"].items()
        }
        if self.carried is not None:
            checkpoint["state_dict"] = dict(self.carried)
        refuse_misfit(self, checkpoint["state_dict"])

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # fewer arguments: nothing in our checkpoints needs the others
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        *,
        net: nn.Module | None = None,
        trusted: Sequence[str] = (),
    ) -> Self:
        """Rebuilds a classifier from its checkpoint alone, without executing anything that is in it.

        Args:
            checkpoint_path: File that `fit` or a trainer wrote.
            map_location: Device to put it on.
            net: The net, where it is of a class that has no `spec`.
            trusted: Modules whose classes the checkpoint may name beside those of `vix`, `datamodules`, `torch.optim`.

        Raises:
            UsageError: If the file is no such checkpoint, names other classes, or does not fit.
        """
        checkpoint = read_checkpoint(checkpoint_path, trusted=trusted)
        arguments = dict(checkpoint.model)
        spec, optimizer, schedule = (arguments.pop(key, None) for key in ("net", "optimizer", "schedule"))
        if net is None and spec is None:
            raise UsageError(
                f"{checkpoint_path}: its net has no spec; give the net: load_from_checkpoint(..., net=...)"
            )
        prefixes = (*TRUSTED, *(f"{module.rstrip('.')}." for module in trusted))
        module = cls(
            net if net is not None else build(spec, trusted=prefixes),
            optimizer=partial(_load_class(optimizer), **optimizer["init_args"]) if optimizer else AdamW,
            schedule=_load_class(schedule)(**schedule["init_args"]) if schedule else None,
            **arguments,
        )
        refuse_misfit(module, checkpoint.weights)
        module.load_state_dict(checkpoint.weights)
        return module if map_location is None else module.to(map_location)

    @property
    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _evaluate(self, batch: ImageBatch, scores: Scores) -> Tensor:
        logits = self(batch.images)
        scores.update(cross_entropy(logits, batch.labels), logits, batch.labels)
        return logits

    def _log_epoch(self, split: str, scores: Scores, **options: Any) -> dict[str, Tensor]:
        means = {f"{split}/{name}": value for name, value in scores.compute().items()}
        # the means are the same in all processes already; sync_dist only tells Lightning that this was thought of
        self.log_dict(
            means, on_step=False, on_epoch=True, prog_bar=split == "val", sync_dist=True, batch_size=1, **options
        )
        scores.reset()
        return means


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in at least fp32; `labels` are classes (b,) or shares (b, classes)."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(precise, labels, label_smoothing=smoothing)


def predict(batch: ImageBatch, logits: Tensor) -> dict[str, Tensor]:
    """The likeliest class of each image and its probability, with what the batch says of it; each (b,)."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities, predictions = precise.softmax(dim=-1).max(dim=-1)
    return {
        "indices": batch.indices,
        "labels": batch.labels,
        "predictions": predictions,
        "probabilities": probabilities,
    }


def factory_spec(factory: OptimizerFactory) -> dict[str, Any] | None:
    """Class path and arguments of a class or of a `functools.partial` over one; None for any other callable."""
    arguments: Mapping[str, Any] = {}
    candidates: tuple[Any, ...] = (factory,)
    if isinstance(factory, partial):
        # jsonargparse's partials call a function of its own with the class as argument
        candidates, arguments = (factory.func, *factory.args), factory.keywords
    for candidate in candidates:
        if isinstance(candidate, type):
            plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
            return {"class_path": import_path(candidate), "init_args": plain}
    return None


def refuse_misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raises a `UsageError` that names the first weights by which a state differs from what a module has."""
    own = module.state_dict()
    wrong = [f"lacks {name}" for name in own if name not in weights]
    wrong += [f"has {name} too much" for name in weights if name not in own]
    wrong += [
        f"has {name} as {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise UsageError(f"the checkpoint does not fit the net: it {', '.join(wrong[:2])}{more}")


def _load_class(spec: Mapping[str, Any]) -> Any:
    """The class that a checked spec names."""
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(__import__(module, fromlist=[name]), name)
