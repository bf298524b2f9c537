"""Progress: a bar on a terminal, a few lines in a log."""

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.callbacks.progress.rich_progress import CustomTimeColumn, ProcessingSpeedColumn
from rich.progress import ProgressColumn, Task
from rich.text import Text

from vix.training.console import say


class Speed:
    """Images a second over the training steps since the last reading, all processes together."""

    def __init__(self) -> None:
        self.rate = 0.0
        self._images = 0
        self._start = time.monotonic()

    def start(self) -> None:
        """Begins anew, so that what lies between epochs does not count."""
        self._images, self._start = 0, time.monotonic()

    def add(self, images: int) -> None:
        """Counts a batch; the rate is renewed every half second, for the host runs ahead of the device."""
        self._images += images
        seconds = time.monotonic() - self._start
        if seconds > 0.5 or not self.rate:
            self.rate = self._images / max(seconds, 1e-9)
            if seconds > 0.5:
                self.start()


class SpeedColumn(ProgressColumn):
    """Shows images a second in place of batches a second.

    Args:
        speed: Counted by the bar.
    """

    max_refresh = 0.5

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        super().__init__()

    def render(self, task: Task) -> Text:
        """The figure, dim."""
        return Text(f"{self.speed.rate:,.0f} images/s", style="dim")


def _left(trainer: Trainer, seconds: float, steps: int) -> str:
    """Time that the rest of the training will take, as h:mm:ss, from the time that some steps took."""
    total = trainer.estimated_stepping_batches
    if steps <= 0 or total == float("inf"):
        return "-:--:--"
    left = int(seconds / steps * max(0, total - trainer.global_step))
    return f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class RichProgress(RichProgressBar):
    """Lightning's bar with images a second, the validation score, and the time until the training is done."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5)
        self.speed = Speed()
        self._shown: dict[str, Any] = {}
        self._start = (0.0, 0)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Lightning's columns with another speed, and without the epoch's time, so that a line takes 80 characters."""
        columns = [each for each in super().configure_columns(trainer) if not isinstance(each, CustomTimeColumn)]
        return [SpeedColumn(self.speed) if isinstance(each, ProcessingSpeedColumn) else each for each in columns]

    def _get_train_description(self, current_epoch: int) -> str:
        # counted from 1, as everywhere else
        epochs = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}" + (f"/{epochs}" if epochs and epochs > 0 else "")

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The scores as they were when validation ended: reading them at every step would wait for the device."""
        return self._shown

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        super().on_train_start(trainer, pl_module)
        self._start = (time.monotonic(), trainer.global_step)
        if trainer.fit_loop.restarted_mid_epoch:
            # Lightning tells only of epochs that are begun
            self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins counting images anew."""
        super().on_train_epoch_start(trainer, pl_module)
        self.speed.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the images."""
        self.speed.add(len(batch.labels) * trainer.world_size)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes over the new scores."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            start, step = self._start
            left = _left(trainer, time.monotonic() - start, trainer.global_step - step)
            scores = super().get_metrics(trainer, pl_module)
            self._shown = {key: value for key, value in scores.items() if key == "val/top1"} | {"left": left}
        super().on_validation_end(trainer, pl_module)


class LineProgress(ProgressBar):
    """At most about `lines` lines in all, for where there is no terminal to draw on.

    Args:
        lines: How many of a training's epochs are told.
    """

    def __init__(self, lines: int = 10) -> None:
        super().__init__()
        self.lines = lines
        self.speed = Speed()
        self._start = (0.0, 0)

    def disable(self) -> None:
        """Nothing to switch off: other processes than the first never print."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start = (time.monotonic(), trainer.global_step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins counting images anew."""
        self.speed.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the images."""
        self.speed.add(len(batch.labels) * trainer.world_size)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line after every tenth part of the training."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        every = max(1, epochs // self.lines)
        if not trainer.is_global_zero or (epoch % every and epoch != epochs):
            return
        start, step = self._start
        scores = {key: value.item() for key, value in trainer.callback_metrics.items()}
        words = [f"epoch {epoch}/{epochs if epochs > 0 else '?'}"]
        words += [f"{key} {scores[key]:.4f}" for key in ("val/loss", "val/top1") if key in scores]
        words.append(f"{self.speed.rate:,.0f} images/s")
        words.append(f"{_left(trainer, time.monotonic() - start, trainer.global_step - step)} left")
        say("   ".join(words))
